"""How far training scales before data movement stops it: the limits model of arXiv 2411.01137, without JAX."""
