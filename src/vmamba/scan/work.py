"""What a selective scan costs: one formula, whichever backend computes it.

For each element of ``u``, b·k·d·l in all, upstream counts nine operations a state and one more for the skip ``D``; its
published figures have the scan in them like this. Backward is counted as twice that, as of any product. What a kernel
computes again instead of storing it is not counted, nor is the gate, which like an activation is one operation for each
element.

Mamba-2's scan is counted as a recurrence too, however its chunks are multiplied: for each element and state two
multiply-adds, what enters the state and what it gives, and a product, its decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

import vmamba.kernels.mamba_ssm
import vmamba.kernels.ssd.scan
import vmamba.kernels.torch_prefix
import vmamba.scan.schema  # noqa: F401 — these four make the operators
from vmamba.flops import Formula, Work, register

Shape = Sequence[int]


def scan_operations(elements: int, states: int) -> int:
    """Operations of a selective scan.

    Args:
        elements: ``b·k·d·l``.
        states: ``n``.
    """
    return elements * (9 * states + 1)


def _selective_scan(u: Shape, delta: Shape, A: Shape, *_: Any, **__: Any) -> Work:
    return Work(0, scan_operations(prod(u), A[-1]))


def _ss2d_scan(x: Shape, x_dbl: Shape, dt_weight: Shape, dt_bias: Shape | None, A: Shape, *_: Any, **__: Any) -> Work:
    k, _d, r = dt_weight
    return Work(k * prod(x) * r, scan_operations(k * prod(x), A[-1]))


def _ssd(x: Shape, dt: Shape, log_decay: Shape, B: Shape, *_: Any, **__: Any) -> Work:
    elements = prod(x) * dt[-2]
    return Work(2 * elements * B[-1], elements * B[-1])


def _backward(forward: Formula, before: int) -> Formula:
    """Of a backward operator, which takes ``before`` arguments and then those of the forward one."""

    def formula(*arguments: Any, **options: Any) -> Work:
        return forward(*arguments[before:], **options).times(2)

    return formula


#: Operator, its formula, and how many arguments of its backward operator stand before its own.
_SCANS: tuple[tuple[str, Callable[..., Work], int], ...] = (
    ("ss2d_scan", _ss2d_scan, 2),
    ("order_scan", _ss2d_scan, 2),
    ("selective_scan", _selective_scan, 2),
    ("selective_scan_states", _selective_scan, 4),
    ("mamba_scan", _selective_scan, 2),
    ("torch_scan", _selective_scan, 2),
    ("torch_ssd", _ssd, 2),
    ("ssd_scan", _ssd, 2),
)

for _name, _formula, _before in _SCANS:
    register(getattr(torch.ops.vmamba, _name), _formula)
    register(getattr(torch.ops.vmamba, f"{_name}_backward"), _backward(_formula, _before))
