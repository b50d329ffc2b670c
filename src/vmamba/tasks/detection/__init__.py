"""Detection and instance segmentation as a task."""
