"""Gadam: a population of learners, on one device or many."""
