"""The version. It has its own file, so that reading it imports nothing else."""

__version__ = "0.2.0.dev0"
