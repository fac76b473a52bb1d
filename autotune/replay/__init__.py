"""Walks a Program on a machine: seconds by resource."""
