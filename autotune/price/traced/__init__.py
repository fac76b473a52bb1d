"""The price of a step that is no transformer we know: from its trace, and from the laws that probes showed."""
