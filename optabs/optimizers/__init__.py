"""The named optimizers, by family: each a chain of words and an equation."""
