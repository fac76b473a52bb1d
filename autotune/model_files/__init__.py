"""Model files of other codebases: what each key says of the architecture, and which keys change nothing in cost."""
