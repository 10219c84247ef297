"""Training: recipe, optimizer, steps, saves, and the records that a run leaves."""
