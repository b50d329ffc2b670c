"""The words that a scan backend and whoever asks it share: what a call is, what stands in its way, what ran.

A backend answers two questions, each with an `Obstacle` or None: can it run on this machine, and can it run this call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

Operator = Literal["selective_scan", "ss2d_scan", "ssd_scan"]


@dataclass(frozen=True)
class Obstacle:
    """Why a backend cannot run, and what would mend it."""

    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.mend})"


class ScanCall(NamedTuple):
    """What a backend may look at to say whether it can run a call.

    Attributes:
        op: the operator.
        device: ``torch.device.type``.
        dtype: of ``u`` (`selective_scan`) or ``x`` (`ss2d_scan`, `ssd_scan`).
        states: ``n``.
        elements: ``b·k·d·l``; None where a traced graph leaves sizes open.
        gradients: whether backward will be asked for.
        transformed: whether a transform of `torch.func` or forward-mode differentiation is on.
        channels: ``k·d``; None as for ``elements``.
        length: ``l``; None as for ``elements``.
        initial: whether it begins with a given state.
        last: whether the state it ends with is asked for.
    """

    op: Operator
    device: str
    dtype: torch.dtype
    states: int = 1
    elements: int | None = None
    gradients: bool = False
    transformed: bool = False
    channels: int | None = None
    length: int | None = None
    initial: bool = False
    last: bool = False


class Kernels(Protocol):
    """The module behind a backend on one kind of device. ``details`` is optional: what will run, for people."""

    def machine_obstacle(self) -> Obstacle | None:
        """What keeps it from running on this machine, or None."""

    def call_obstacle(self, call: ScanCall) -> Obstacle | None:
        """What keeps it from running this call, or None."""


class ScanRun(NamedTuple):
    """One operator call as it happened."""

    backend: str
    op: Operator
    detail: str = ""  # e.g. the instruction set that ran


_recordings: list[list[ScanRun]] = []


def record(run: ScanRun) -> None:
    """Tell every open `recorded_runs` that an operator ran. Called by whoever runs it."""
    for runs in _recordings:
        runs.append(run)


@contextmanager
def recorded_runs() -> Iterator[list[ScanRun]]:
    """Collect the forward operator calls made inside the ``with`` block, in order: what really ran.

    Inside a compiled graph, calls of the ``torch`` backend are ordinary traced operations and leave no record.
    """
    runs: list[ScanRun] = []
    _recordings.append(runs)
    try:
        yield runs
    finally:
        # By identity: two empty recordings are equal.
        _recordings[:] = [other for other in _recordings if other is not runs]
