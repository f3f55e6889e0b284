"""Finding the setting of pruning for a model, a task and a machine."""
