"""What a compiled program says: its limits, its overheads, its replay."""
