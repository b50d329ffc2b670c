"""The compiled CPU kernels (``csrc/``): the library, what its functions take, and a Python function for each.

For the backend ``"oflex"`` on a CPU the package answers what `vmamba.kernels.interface.Kernels` asks.
"""

from vmamba.kernels.interface import Obstacle, ScanCall
from vmamba.kernels.native import library, selective_scan, ss2d_scan, ssd_scan
from vmamba.kernels.native.structs import DTYPE_CODES

__all__ = ["DTYPE_CODES", "call_obstacle", "machine_obstacle", "selective_scan", "ss2d_scan", "ssd_scan"]


def machine_obstacle() -> Obstacle | None:
    """A library that is missing or does not load."""
    return library.obstacle()


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """It runs 16- and 32-bit floats."""
    if call.dtype not in DTYPE_CODES:
        return Obstacle(f"the compiled kernels have no {call.dtype}", "convert to float32")
    return None
