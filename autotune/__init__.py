"""Which mesh and layout for a JAX train step, and what stops it from being faster."""
