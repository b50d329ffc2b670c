"""Image classification: one label out of several for a whole image."""
