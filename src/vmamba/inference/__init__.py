"""Running a trained model fast: `optimize`, and exported ONNX files."""

from vmamba.inference.engines import Engine, Optimized, optimize

__all__ = ["Engine", "Optimized", "optimize"]
