"""The fastest way to run a training step: its modes, a trial of each, the race, and the table."""
