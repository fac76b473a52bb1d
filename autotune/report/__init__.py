"""What the search found: JSON, terminal and HTML."""
