"""Training: a recipe, the loop, and what the loop asks of a task."""
