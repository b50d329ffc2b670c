"""What a scan backend is: the questions it answers and the words it answers them in.

A backend's implementation is a module with

* ``machine_obstacle() -> Obstacle | None``: what keeps it from running on this machine, if anything;
* ``call_obstacle(call) -> Obstacle | None``: what keeps it from running this call;
* ``selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus) -> y``: inputs already checked, ``B`` and
  ``C`` 4-d, output float64 for float64 ``u`` and float32 otherwise;
* optionally ``ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, scan_mode, delta_softplus) -> y``, where it has a
  fused one; without it the operator is composed from the backend's ``selective_scan``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Operator = Literal["selective_scan", "ss2d_scan"]


@dataclass(frozen=True)
class Obstacle:
    """Why a backend cannot run, and what would mend it."""

    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.mend})"


@dataclass(frozen=True)
class ScanCall:
    """What a backend may look at to say whether it can run a call."""

    op: Operator
    device: str  # torch.device.type
    dtype: torch.dtype  # of u (selective_scan) or x (ss2d_scan)


@dataclass(frozen=True)
class Run:
    """One operator call as it happened."""

    backend: str
    op: Operator
    detail: str = ""  # e.g. the instruction set that ran


_recordings: list[list[Run]] = []


def record(run: Run) -> None:
    """Tell every open `recorded_runs` that an operator ran. Called by the implementations."""
    for runs in _recordings:
        runs.append(run)


@contextmanager
def recorded_runs() -> Iterator[list[Run]]:
    """Collect the forward operator calls made inside the ``with`` block, in order: what really ran.

    Inside a compiled graph, calls of the ``torch`` backend are ordinary traced operations and leave no record.
    """
    runs: list[Run] = []
    _recordings.append(runs)
    try:
        yield runs
    finally:
        # By identity: two empty recordings are equal.
        _recordings[:] = [other for other in _recordings if other is not runs]
