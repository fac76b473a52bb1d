"""One file a command; each parses its options, calls one function of the library, and renders."""
