"""Distillation: a student learns from its teacher's outputs and features. Import each name from its own file."""
