"""The survey study: every optimizer on its four questions."""
