"""The scans: what kernels are made of, how a call is cut into programs, and the launches of both operators."""
