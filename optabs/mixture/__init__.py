"""DAO-E: several optimizers at once, mixed by a controller that learns while they train."""
