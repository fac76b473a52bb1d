"""The best layout against cluster size, for a user's own model and target, from the tuner's own prices. JAX-free."""
