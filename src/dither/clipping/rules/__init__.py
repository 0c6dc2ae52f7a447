"""How the per-example gradients of each function follow from its input and output gradient."""
