"""What a run tells: rows, curves, lines on the terminal, trackers."""
