"""Training and after: data, recipes, the loop, scores, prediction. Import what you need from its file."""
