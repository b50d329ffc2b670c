"""Tensors in, tensors out: the selective scan, its 2-d form, and the scan orders."""

from vmamba.ops.backends import backend, recorded_runs
from vmamba.ops.cascade_scan import cascade_scan
from vmamba.ops.cross_scan import cross_merge, cross_merge_fn, cross_scan, cross_scan_fn
from vmamba.ops.reference import selective_scan_reference
from vmamba.ops.selective_scan import selective_scan, selective_scan_fn
from vmamba.ops.ss2d_scan import ss2d_scan

__all__ = [
    "backend",
    "cascade_scan",
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "recorded_runs",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_reference",
    "ss2d_scan",
]
