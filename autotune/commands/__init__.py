"""One file a command; each parses its options, calls one function of the library, and renders."""

ARGUMENTS = "autotune.arguments"
"""Key of click's `Context.meta`: the arguments of the command line as they were given."""
