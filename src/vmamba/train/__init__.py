"""Training: a run and its folder, the loop within it, and what both are configured by. What is learnt, a task says."""
