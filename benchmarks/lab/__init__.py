"""What the studies share: tasks, the runner, records, reports, timing, data and models."""
