"""The step, the loop around it, checkpoints, models and held-out metrics."""
