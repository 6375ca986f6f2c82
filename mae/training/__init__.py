"""Pre-training: the recipe, the schedule, the loop and the run folder."""
