"""The command line: one file a command; each parses, calls its room's function, and prints the report."""
