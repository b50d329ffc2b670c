"""Measures what each scan backend that runs here does: error against the oracle, time, and peak memory."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from vmamba.bench.measure import peak_mib as _peak_mib
from vmamba.bench.measure import waiter
from vmamba.bench.scan_calls import (
    Size,
    Tensors,
    leaves,
    make_inputs,
    relative_error,
    results,
    run_loop,
    run_scan,
    tolerance,
)
from vmamba.kernels.interface import Operator, ScanCall
from vmamba.scan import recorded_runs
from vmamba.scan.dispatch import BACKENDS

#: Those that several backends have.
OPERATORS: tuple[Operator, ...] = ("selective_scan", "ss2d_scan", "ssd_scan")
DTYPES = (torch.float32, torch.bfloat16)

#: 28×28 tokens, as in the second stage of a model for 224×224 pixels; channels few enough for the oracle.
BATCH, DIRECTIONS, CHANNELS, STATES, SIDE, RANK = 1, 4, 96, 1, 28, 6

#: Rounds of timing: as many as fit in the seconds, between the two numbers.
_WARM_UPS, _MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 1, 3, 15, 2.0


@dataclass(frozen=True)
class Check:
    """One backend running one operator, forward and backward.

    Attributes:
        errors: for the output ``y`` and for each gradient (``du``, …) the largest difference from the oracle in
            float64, as a part of the oracle's largest value.
        tolerance: what each error may be.
        forward_ms, backward_ms: median time of warm runs, the backends taking turns; milliseconds.
        forward_mib: the most that torch's allocator held at once during the forward pass beyond the inputs, MiB; what
            a kernel allocates by itself is not seen. None where this cannot be measured.
        training_mib: the same during forward and backward together.
        detail: what ran, where the backend says so (the instruction set).
        problem: why it could not be measured, or an empty string.
    """

    backend: str
    op: str
    device: str
    dtype: str
    tolerance: float
    errors: dict[str, float] = field(default_factory=dict)
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_mib: float | None = None
    training_mib: float | None = None
    detail: str = ""
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and every error is a number within the tolerance."""
        return not self.problem and all(error <= self.tolerance for error in self.errors.values())

    @property
    def failure(self) -> str:
        """Why it did not pass, or an empty string."""
        if self.problem or self.passed:
            return self.problem
        name, error = self.worst()
        return f"the error of {name} is {error:.1e}, more than {self.tolerance:.1e}"

    def worst(self, gradients_only: bool = False) -> tuple[str, float]:
        """The tensor with the largest error, and that error; NaN counts as the largest."""
        errors = [(name, error) for name, error in self.errors.items() if not (gradients_only and name == "y")]
        return max(errors, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])


def run_checks(device: str) -> list[Check]:
    """Measure every backend that can run on ``device`` (``"cpu"``, ``"cuda:0"``, …) with each operator and dtype."""
    checks: list[Check] = []
    for op in OPERATORS:
        for dtype in DTYPES:
            call = ScanCall(op, torch.device(device).type, dtype)
            able = [name for name, backend in BACKENDS.items() if backend.obstacle(call) is None]
            checks += _compare(op, device, dtype, able)
    return checks


def _compare(op: Operator, device: str, dtype: torch.dtype, backends: list[str]) -> list[Check]:
    size = Size(BATCH, DIRECTIONS, CHANNELS, STATES, SIDE, SIDE, RANK)
    inputs = make_inputs(op, dtype, size)
    exact = leaves(inputs, "cpu", torch.float64)
    y = run_loop(op, exact)
    y_gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = results(y, exact, y_gradient)

    given = leaves(inputs, device)
    y_gradient = y_gradient.to(device)
    word = str(dtype).removeprefix("torch.")
    checks = {
        name: _check_error(Check(name, op, device, word, tolerance(dtype, SIDE * SIDE)), given, y_gradient, expected)
        for name in backends
    }

    able = [name for name in backends if not checks[name].problem]
    for name, (forward_ms, backward_ms) in _interleaved_times(op, given, y_gradient, able).items():
        checks[name] = replace(
            checks[name],
            forward_ms=forward_ms,
            backward_ms=backward_ms,
            forward_mib=_peak_mib(device, partial(run_scan, op, given, name)),
            training_mib=_peak_mib(device, partial(_step, op, given, name, y_gradient)),
        )
    return list(checks.values())


def _check_error(check: Check, given: Tensors, y_gradient: Tensor, expected: Tensors) -> Check:
    try:
        with recorded_runs() as runs:
            got = _step(check.op, given, check.backend, y_gradient)
    except Exception as error:  # a broken backend is what a check is there to report
        return replace(check, problem=f"{type(error).__name__}: {error}")
    ran = {run.backend for run in runs}
    if ran != {check.backend}:
        return replace(check, problem=f"what ran was {sorted(ran) or 'not recorded'}")
    errors = {name: relative_error(got[name], expected[name]) for name in expected}
    return replace(check, errors=errors, detail=runs[0].detail)


def _step(op: str, inputs: Tensors, backend: str, y_gradient: Tensor) -> Tensors:
    return results(run_scan(op, inputs, backend), inputs, y_gradient)


def _interleaved_times(
    op: str, inputs: Tensors, y_gradient: Tensor, backends: list[str]
) -> dict[str, tuple[float, float]]:
    """Median forward and backward milliseconds; the backends take turns, so that a busy moment hits them all."""
    wait = waiter(y_gradient.device)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
    begin = time.perf_counter()
    for turn in range(_WARM_UPS + _MAX_ROUNDS):
        if turn >= _WARM_UPS + _MIN_ROUNDS and time.perf_counter() - begin > _SECONDS:
            break
        for name in backends:
            wait()
            start = time.perf_counter()
            y = run_scan(op, inputs, name)
            wait()
            middle = time.perf_counter()
            results(y, inputs, y_gradient)
            wait()
            end = time.perf_counter()
            if turn >= _WARM_UPS:
                samples[name].append(((middle - start) * 1e3, (end - middle) * 1e3))
    return {
        name: cast("tuple[float, float]", tuple(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in samples.items()
    }
