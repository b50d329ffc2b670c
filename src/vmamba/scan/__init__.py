"""Tensors in, tensors out: the selective scan, Mamba-2's scan, both over maps, and the scan orders."""

import vmamba.scan.work  # noqa: F401 — tells torch's counters what the operators cost
from vmamba.kernels.interface import recorded_runs
from vmamba.scan.any_order import (
    AxisOrder,
    IndexOrder,
    RuleOrder,
    order_scan,
    order_scan_reference,
    ssd_order_scan,
    ssd_order_scan_reference,
)
from vmamba.scan.cascade import cascade_scan
from vmamba.scan.dispatch import backend
from vmamba.scan.orders import cross_merge, cross_merge_fn, cross_scan, cross_scan_fn
from vmamba.scan.reference import (
    selective_scan_reference,
    selective_scan_states_reference,
    ss2d_scan_reference,
    ssd_scan_reference,
)
from vmamba.scan.selective_scan import selective_scan, selective_scan_fn
from vmamba.scan.ss2d_scan import ss2d_scan
from vmamba.scan.ssd_scan import ssd_scan

__all__ = [
    "AxisOrder",
    "IndexOrder",
    "RuleOrder",
    "backend",
    "cascade_scan",
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "order_scan",
    "order_scan_reference",
    "recorded_runs",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_reference",
    "selective_scan_states_reference",
    "ss2d_scan",
    "ss2d_scan_reference",
    "ssd_order_scan",
    "ssd_order_scan_reference",
    "ssd_scan",
    "ssd_scan_reference",
]
