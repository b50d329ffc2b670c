"""What a run is asked for: the typed configuration, what fills it in, and where each value came from."""
