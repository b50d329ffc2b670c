"""Measures what each scan backend that runs here does: error against the oracle, time, and peak memory."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast, get_args

import torch
from torch import Tensor

from vmamba.ops import cross_merge, cross_scan, recorded_runs, selective_scan, selective_scan_reference, ss2d_scan
from vmamba.ops.backends import BACKENDS, ScanCall
from vmamba.ops.backends.interface import Operator
from vmamba.ops.cross_scan import SCAN_MODES, to_sequence

OPERATORS: tuple[Operator, ...] = get_args(Operator)
DTYPES = (torch.float32, torch.bfloat16)

#: 28×28 tokens, as in the second stage of a model for 224×224 pixels; channels few enough for the oracle.
BATCH, DIRECTIONS, CHANNELS, STATES, SIDE, RANK = 1, 4, 96, 1, 28, 6

#: Largest error, as a part of the tensor's largest value. In float32 each of 784 steps adds a rounding: 64 epsilons are
#: twice their random walk. In bfloat16 results are rounded once more, by at most half an epsilon.
TOLERANCES = {torch.float32: 64 * torch.finfo(torch.float32).eps, torch.bfloat16: torch.finfo(torch.bfloat16).eps}

#: Rounds of timing: as many as fit in the seconds, between the two numbers.
_WARM_UPS, _MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 1, 3, 15, 2.0

Inputs = dict[str, Tensor]


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
    inputs = _inputs(op, dtype)
    exact = _leaves(inputs, "cpu", torch.float64)
    y = _oracle(op, exact)
    y_gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = _results(y, exact, y_gradient)

    leaves = _leaves(inputs, device)
    y_gradient = y_gradient.to(device)
    word = str(dtype).removeprefix("torch.")
    checks = {
        name: _check_error(Check(name, op, device, word, TOLERANCES[dtype]), leaves, y_gradient, expected)
        for name in backends
    }

    able = [name for name in backends if not checks[name].problem]
    for name, (forward_ms, backward_ms) in _interleaved_times(op, leaves, y_gradient, able).items():
        checks[name] = replace(
            checks[name],
            forward_ms=forward_ms,
            backward_ms=backward_ms,
            forward_mib=_peak_mib(device, partial(_call, op, leaves, name)),
            training_mib=_peak_mib(device, partial(_step, op, leaves, name, y_gradient)),
        )
    return list(checks.values())


def _check_error(check: Check, leaves: Inputs, y_gradient: Tensor, expected: Inputs) -> Check:
    try:
        with recorded_runs() as runs:
            got = _step(check.op, leaves, check.backend, y_gradient)
    except Exception as error:  # a broken backend is what a check is there to report
        return replace(check, problem=f"{type(error).__name__}: {error}")
    ran = {run.backend for run in runs}
    if ran != {check.backend}:
        return replace(check, problem=f"what ran was {sorted(ran) or 'not recorded'}")
    errors = {name: _error(got[name], expected[name]) for name in expected}
    return replace(check, errors=errors, detail=runs[0].detail)


# The calls.


def _inputs(op: str, dtype: torch.dtype) -> Inputs:
    """Random inputs on the CPU in a fresh model's ranges; parameters in float32, as in a model under autocast."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels, length, width = DIRECTIONS * CHANNELS, SIDE * SIDE, RANK + 2 * STATES
    A = -torch.rand(channels, STATES, generator=generator) - 0.5
    D = torch.ones(channels)
    bias = normal(channels) - 4  # softplus of it: steps around 0.02
    if op == "selective_scan":
        return {
            "u": normal(BATCH, channels, length).to(dtype),
            "delta": normal(BATCH, channels, length).to(dtype),
            "A": A,
            "B": normal(BATCH, DIRECTIONS, STATES, length).to(dtype),
            "C": normal(BATCH, DIRECTIONS, STATES, length).to(dtype),
            "D": D,
            "delta_bias": bias,
        }
    return {
        "x": normal(BATCH, SIDE, SIDE, CHANNELS).to(dtype),
        "x_dbl": normal(BATCH, SIDE, SIDE, DIRECTIONS, width).to(dtype),
        "dt_weight": normal(DIRECTIONS, CHANNELS, RANK) * RANK**-0.5,
        "dt_bias": bias.view(DIRECTIONS, CHANNELS),
        "A": A,
        "D": D,
    }


def _leaves(inputs: Inputs, device: str, dtype: torch.dtype | None = None) -> Inputs:
    return {name: t.to(device, dtype or t.dtype, copy=True).requires_grad_() for name, t in inputs.items()}


def _call(op: str, inputs: Inputs, backend: str) -> Tensor:
    run: Callable[..., Tensor] = selective_scan if op == "selective_scan" else ss2d_scan
    return run(**inputs, delta_softplus=True, backend=backend)


def _step(op: str, inputs: Inputs, backend: str, y_gradient: Tensor) -> Inputs:
    return _results(_call(op, inputs, backend), inputs, y_gradient)


def _oracle(op: str, inputs: Inputs) -> Tensor:
    """What the operator means, from the reference recurrence, in the inputs' dtype."""
    if op == "selective_scan":
        return selective_scan_reference(**inputs, delta_softplus=True)
    x, x_dbl, dt_weight, dt_bias, A, D = inputs.values()
    h, w = x.shape[1:3]
    maps = x_dbl.permute(0, 3, 4, 1, 2)  # (b, k, r + 2n, h, w)
    sequences = torch.stack([to_sequence(maps[:, i], way) for i, way in enumerate(SCAN_MODES["cross2d"])], dim=1)
    low_rank, B, C = sequences.split([RANK, STATES, STATES], dim=2)
    delta = torch.einsum("kdr,bkrl->bkdl", dt_weight, low_rank.to(dt_weight.dtype))
    u = cross_scan(x.permute(0, 3, 1, 2)).flatten(1, 2)
    y = selective_scan_reference(u, delta.flatten(1, 2), A, B, C, D, dt_bias.flatten(), delta_softplus=True)
    return cross_merge(y.unflatten(1, (DIRECTIONS, CHANNELS)), h, w).permute(0, 2, 3, 1)


def _results(y: Tensor, inputs: Inputs, y_gradient: Tensor) -> Inputs:
    """The output and the gradient of each input, named `y` and `d…`."""
    gradients = torch.autograd.grad(y, list(inputs.values()), y_gradient.to(y.dtype))
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def _error(got: Tensor, expected: Tensor) -> float:
    """Largest difference as a part of the largest expected value; NaN where anything is not a number."""
    difference = (got.detach().to("cpu", torch.float64) - expected).abs().max()
    return float(difference / expected.abs().max())


# Time.


def _interleaved_times(
    op: str, inputs: Inputs, y_gradient: Tensor, backends: list[str]
) -> dict[str, tuple[float, float]]:
    """Median forward and backward milliseconds; the backends take turns, so that a busy moment hits them all."""
    wait = _waiter(y_gradient.device)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
    begin = time.perf_counter()
    for turn in range(_WARM_UPS + _MAX_ROUNDS):
        if turn >= _WARM_UPS + _MIN_ROUNDS and time.perf_counter() - begin > _SECONDS:
            break
        for name in backends:
            wait()
            start = time.perf_counter()
            y = _call(op, inputs, name)
            wait()
            middle = time.perf_counter()
            _results(y, inputs, y_gradient)
            wait()
            end = time.perf_counter()
            if turn >= _WARM_UPS:
                samples[name].append(((middle - start) * 1e3, (end - middle) * 1e3))
    return {
        name: cast("tuple[float, float]", tuple(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in samples.items()
    }


def _waiter(device: torch.device) -> Callable[[], None]:
    """What to call so that everything started on ``device`` has ended."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


# Memory.


def _peak_mib(device: str, run: Callable[[], object]) -> float | None:
    """The most bytes that torch's allocator held at once while ``run`` ran, beyond what it held before, in MiB."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _cpu_peak_bytes(run) / 2**20 if kind == "cpu" else None


def _cpu_peak_bytes(run: Callable[[], object]) -> int:
    """Add up the allocator's own events: unlike a dispatch mode they show what kernels of custom operators ask for."""
    from torch.profiler import ProfilerActivity, profile

    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    raw = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((event for event in raw if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's log, with its errors about absent GPUs, off standard error."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
