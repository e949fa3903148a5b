"""Training, scoring and prediction: data, recipes, the loop. Import each name from its own file."""
