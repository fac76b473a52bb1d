"""Compiles one layout for one target in a worker process, and what came of it."""
