"""What the project measured, and how: each file is a command that prints a table and writes it to results/."""
