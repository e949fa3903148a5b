"""The documentation, and what generates its pages (`python -m docs.generate`)."""
