"""Training: the loop, the run that owns it, and the folder that a run leaves behind."""
