"""Training: the loop, checkpoints, the run folder, evaluation, prompt search, several processes."""
