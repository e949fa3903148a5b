"""The command line: one file per command. Each one parses, calls its room's function, and prints the report."""
