"""The command line and what belongs to it."""
