"""Decoders over the backbone: what it sees, as boxes and masks."""
