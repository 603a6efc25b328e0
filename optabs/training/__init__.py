"""Training by descent: one function for the survey's three loops."""
