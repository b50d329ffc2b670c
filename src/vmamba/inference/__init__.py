"""Running a trained model fast: `optimize`, and the files of `vmamba export`."""

from vmamba.inference.engines import Engine, Optimized, optimize

__all__ = ["Engine", "Optimized", "optimize"]
