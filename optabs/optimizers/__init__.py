"""The named optimizers, by family: each is a chain of parts, with its equation."""
