"""Measures this machine's rates into a hardware file."""
