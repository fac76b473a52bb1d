"""The closed form: seconds and bytes of millions of layouts, without JAX."""
