"""Short runs of the best layouts where devices exist."""
