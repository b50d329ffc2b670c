"""The scan inside a packed `SS2D`: its constants, and the kernel call for a map."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vmamba.kernels.native import ss2d_scan, ssd_scan
from vmamba.kernels.native.program import Calls
from vmamba.layers.ss2d import SS2D
from vmamba.scan.any_order import MODE_ORDERS, AxisOrder, loops_of
from vmamba.scan.orders import readings_of


class PackedScan(Protocol):
    """What adds a scan to the calls that are recorded or made."""

    def __call__(self, calls: Calls, x: Tensor, x_dbl: Tensor, y: Tensor) -> None:
        """Add the scan of ``x (b, h, w, d)`` with ``x_dbl (b, h, w, k, r + 2n)``, into ``y`` like ``x``."""


def packed_scan(op: SS2D) -> PackedScan:
    """The scan of a layer in a scan mode, with copies of its parameters."""
    return _SsdScan(op) if op.forward_type.family == "m0" else _SelectiveScan(op)


class _SelectiveScan:
    def __init__(self, op: SS2D) -> None:
        self._readings = readings_of(op.forward_type.scan_mode)
        self._A = -torch.exp(op.A_logs.detach())
        self._D, self._dt_weight, self._dt_bias = (
            t.detach().clone() for t in (op.Ds, op.dt_projs_weight, op.dt_projs_bias)
        )

    def __call__(self, calls: Calls, x: Tensor, x_dbl: Tensor, y: Tensor) -> None:
        parameters = self._dt_weight, self._dt_bias, self._A, self._D
        call = ss2d_scan.forward_call(x, x_dbl, *parameters, self._readings, True, y, None, _workspace(calls))
        calls.add(call)


class _SsdScan:
    def __init__(self, op: SS2D) -> None:
        orders = [order for order in MODE_ORDERS[op.forward_type.scan_mode] if isinstance(order, AxisOrder)]
        self._loops = loops_of(orders, 2)
        self._A = -torch.exp(op.A_logs.detach())
        self._dt_bias = op.dt_projs_bias.detach().clone()
        self._D = op.Ds.detach().sum(0).flatten()  # all directions skip to the same places

    def __call__(self, calls: Calls, x: Tensor, x_dbl: Tensor, y: Tensor) -> None:
        call = ssd_scan.forward_call(x, x_dbl, self._dt_bias, self._A, self._D, *self._loops, y, _workspace(calls))
        calls.add(call)


def _workspace(calls: Calls) -> ss2d_scan.Workspace:
    return lambda size: calls.buffer("workspace", [size])
