"""DAO-E's experiments: the study over many tasks, and the paper's own."""
