"""The trainer and its parts: from a batch to new weights."""
