"""Reads what the compiler wrote: HLO text to a Program."""
