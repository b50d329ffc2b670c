"""Trained models on images: measured where the truth is known, asked where it is not."""
