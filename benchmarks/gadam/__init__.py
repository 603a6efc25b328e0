"""Gadam: the study, and its runs on several processes."""
