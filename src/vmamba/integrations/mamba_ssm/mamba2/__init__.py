"""Mamba-2 (arXiv 2405.21060) under mamba-ssm's names: the layer, its scan with all around it, and its gated norms."""
