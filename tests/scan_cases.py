"""What the operator tests share: the backends that run here, inputs, and the float64 oracle's outputs and gradients."""

import torch

from vmamba.kernels.interface import ScanCall
from vmamba.scan import selective_scan_reference
from vmamba.scan.dispatch import BACKENDS

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def runnable(op, dtype=torch.float32):
    """The registered backends that can run ``op`` on this CPU; a new one is tested the day it is registered."""
    return [name for name, backend in BACKENDS.items() if backend.obstacle(ScanCall(op, "cpu", dtype)) is None]


def inputs(b, k, d, n, length, *, D=True, bias=True, dtype=torch.float32, scale=1.0, seed=0):
    """Random operator inputs; u, delta, B and C in ``dtype``, parameters in float32 (float64 for float64)."""
    draw = torch.Generator().manual_seed(seed)
    full = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape, to):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(to)

    return [
        normal(b, k * d, length, to=dtype),
        (scale * normal(b, k * d, length, to=torch.float64)).to(dtype),
        -torch.exp(normal(k * d, n, to=full)),
        normal(b, k, n, length, to=dtype),
        normal(b, k, n, length, to=dtype),
        normal(k * d, to=full) if D else None,
        normal(k * d, to=full) - 1 if bias else None,
    ]


def fused_inputs(b, h, w, d, r, n, dtype=torch.float32, *, optional=True, scale=1.0):
    """``x, x_dbl, dt_weight, dt_bias, A, D`` of `ss2d_scan`; maps in ``dtype``, parameters in float32."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    return [
        normal(b, h, w, d).to(dtype),
        (scale * normal(b, h, w, 4, r + 2 * n)).to(dtype),
        normal(4, d, r) / r**0.5,
        normal(4, d) if optional else None,
        -torch.exp(normal(4 * d, n)),
        normal(4 * d) if optional else None,
    ]


def with_gradients(function, values, weight):
    """``function(*values)`` and the gradients of ``sum(weight · output)`` for every value that is not None."""
    leaves = [None if v is None else v.detach().clone().requires_grad_() for v in values]
    out = function(*leaves)
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad((out.double() * weight).sum(), given))
    return out.detach(), [None if v is None else next(gradients) for v in values]


def oracle(values, softplus, weight):
    """The reference in float64, fed with exactly the values that the backend sees."""
    exact = [None if v is None else v.double() for v in values]
    return with_gradients(lambda *v: selective_scan_reference(*v, softplus), exact, weight)


def check(got, want, tolerance, what):
    """Relative to the largest value, as rounding errors of sums are."""
    error = (got.double() - want).abs().max()
    scale = want.abs().max().clamp(min=1e-6)
    assert got.isfinite().all(), what
    assert error <= tolerance * scale, f"{what}: off by {error / scale:.2e} of scale, allowed {tolerance:.0e}"
