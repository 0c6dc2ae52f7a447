"""From a model and a batch to a sum of clipped per-example gradients."""
