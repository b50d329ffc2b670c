"""Calls of the scan operators to measure: random inputs of a size, how to run them, and what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmamba.scan import (
    selective_scan,
    selective_scan_reference,
    ss2d_scan,
    ss2d_scan_reference,
    ssd_scan,
    ssd_scan_reference,
)

#: By the operators' argument names; results are ``y`` and the gradients ``du``, ``ddelta``, …
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """How large a call is; ``l = h·w``.

    ``k`` is 4 for ``ss2d_scan``, whose rank is ``r``; for ``ssd_scan`` it is the groups, ``r`` a head's channels.
    """

    b: int
    k: int
    d: int
    n: int
    h: int
    w: int
    r: int = 0


#: Operator: what runs it, its oracle, and what has the step go through softplus.
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, bool]]] = {
    "selective_scan": (selective_scan, selective_scan_reference, {"delta_softplus": True}),
    "ss2d_scan": (ss2d_scan, ss2d_scan_reference, {"delta_softplus": True}),
    "ssd_scan": (ssd_scan, ssd_scan_reference, {"dt_softplus": True}),
}


def tolerance(dtype: torch.dtype, length: int) -> float:
    """The largest error that rounding explains after ``length`` steps, as a part of a tensor's largest value.

    In float32 every step adds a rounding, which makes a random walk: twice its root, and no less than 64 epsilons for
    the sums of the gradients. In 16 bits results are rounded once more, by at most half an epsilon.
    """
    exact = torch.finfo(torch.float32).eps * max(64.0, 2 * math.sqrt(length))
    return max(exact, torch.finfo(dtype).eps)


def make_inputs(op: str, dtype: torch.dtype, size: Size) -> Tensors:
    """Random inputs on the CPU in a fresh model's ranges; parameters in float32, as in a model under autocast."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    b, k, d, n, r, length = size.b, size.k, size.d, size.n, size.r, size.h * size.w
    if op == "ssd_scan":
        heads = k * d // r
        return {
            "x": normal(b, length, heads, r).to(dtype),
            "dt": normal(b, length, heads).to(dtype),
            "A": -torch.rand(heads, generator=generator) - 0.5,
            "B": normal(b, length, k, n).to(dtype),
            "C": normal(b, length, k, n).to(dtype),
            "D": torch.ones(heads),
            "dt_bias": normal(heads) - 4,
        }
    A = -torch.rand(k * d, n, generator=generator) - 0.5
    D = torch.ones(k * d)
    bias = normal(k * d) - 4  # softplus of it: steps around 0.02
    if op == "selective_scan":
        return {
            "u": normal(b, k * d, length).to(dtype),
            "delta": normal(b, k * d, length).to(dtype),
            "A": A,
            "B": normal(b, k, n, length).to(dtype),
            "C": normal(b, k, n, length).to(dtype),
            "D": D,
            "delta_bias": bias,
        }
    return {
        "x": normal(b, size.h, size.w, d).to(dtype),
        "x_dbl": normal(b, size.h, size.w, k, r + 2 * n).to(dtype),
        "dt_weight": normal(k, d, r) * r**-0.5,
        "dt_bias": bias.view(k, d),
        "A": A,
        "D": D,
    }


def leaves(inputs: Tensors, device: str, dtype: torch.dtype | None = None) -> Tensors:
    """Copies of ``inputs`` on ``device`` that ask for gradients."""
    return {name: t.to(device, dtype or t.dtype, copy=True).requires_grad_() for name, t in inputs.items()}


def run_scan(op: str, inputs: Tensors, backend: str) -> Tensor:
    """The operator's output by one backend."""
    run, _, softplus = _OPERATORS[op]
    y: Tensor = run(**inputs, **softplus, backend=backend)
    return y


def run_loop(op: str, inputs: Tensors) -> Tensor:
    """What the operator means, from the reference recurrence: the oracle where the inputs are float64."""
    _, reference, softplus = _OPERATORS[op]
    found = reference(**inputs, **softplus)
    y: Tensor = found[0] if isinstance(found, tuple) else found  # Mamba-2's gives the last states too
    return y


def results(y: Tensor, inputs: Tensors, y_gradient: Tensor) -> Tensors:
    """The output and the gradient of each input, named `y` and `d…`."""
    gradients = torch.autograd.grad(y, list(inputs.values()), y_gradient.to(y.dtype))
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def relative_error(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference as a part of the largest expected value; NaN where anything is not a number.

    Expected values that are all below ``floor`` count as that large; where they are all 0, any difference is infinite.
    """
    difference = float((got.detach().to("cpu", torch.float64) - expected).abs().max())
    scale = max(float(expected.abs().max()), floor)
    if scale == 0.0 and not math.isnan(difference):
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale if scale else math.nan
