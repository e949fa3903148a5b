"""From an exported program to the graph."""
