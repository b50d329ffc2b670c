"""The interchangeable implementations of the scan and the table that picks one."""

from vmamba.ops.backends.interface import Obstacle, Run, ScanCall, recorded_runs
from vmamba.ops.backends.registry import BACKENDS, Backend, ambient, backend, check_name, choose

__all__ = [
    "BACKENDS",
    "Backend",
    "Obstacle",
    "Run",
    "ScanCall",
    "ambient",
    "backend",
    "check_name",
    "choose",
    "recorded_runs",
]
