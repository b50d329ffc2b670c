"""A run's folder: its files, its training states, and going on from them."""
