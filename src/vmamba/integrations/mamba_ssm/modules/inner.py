"""The inside of a Mamba block between its first and its last projection, as functions (arXiv 2312.00752, Fig. 3).

mamba-ssm and Vim compute these by one autograd function each, to save memory; here they are made of our own operators.
Letters: ``c`` the block's channels, ``d`` the inner ones, ``r`` the rank of the step, ``w`` the width of the
convolution, ``n`` states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.conv1d import causal_conv1d
from vmamba.integrations.mamba_ssm.modules.scan import selective_scan_fn, selective_scan_ref


class Weights(NamedTuple):
    """What makes u, step, B and C of one pass over the sequence."""

    conv1d: Tensor  # (d, 1, w)
    conv1d_bias: Tensor | None  # (d,)
    x_proj: Tensor  # (r + 2n, d)
    delta_proj: Tensor  # (d, r)
    B_proj_bias: Tensor | None = None  # (n,)
    C_proj_bias: Tensor | None = None  # (n,)


class Norms(NamedTuple):
    """Weights of RMS norms of B ``(n,)``, C ``(n,)`` and the step ``(d,)``, as Falcon Mamba has (arXiv 2410.05355)."""

    B: Tensor | None = None
    C: Tensor | None = None
    delta: Tensor | None = None
    eps: float = 1e-6


class How(NamedTuple):
    """Who convolves and who scans."""

    conv: Callable[..., Tensor]
    scan: Callable[..., Any]


def _plain_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    bias = None if bias is None else bias.to(x.dtype)
    return F.silu(F.conv1d(padded, weight[:, None].to(x.dtype), bias, groups=weight.shape[0])).to(x.dtype)


FAST = How(causal_conv1d, selective_scan_fn)
PLAIN = How(_plain_conv, selective_scan_ref)


def inner(
    xz: Tensor,
    weights: Weights,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    A_b: Tensor | None = None,
    norms: Norms | None = None,
    return_last_state: bool = False,
    how: How = FAST,
) -> Any:
    """Convolve ``x``, project it to step, B and C, scan, and gate with ``z``.

    Args:
        xz: ``(b, 2·d, l)``: ``x`` and the gate ``z``.
        weights: of the convolution and the projections.
        A: ``(d, n)``.
        B, C: as of `selective_scan_fn`, or None for those that ``weights`` make.
        D, delta_bias: ``(d,)`` or None.
        delta_softplus: whether the step goes through softplus.
        A_b: ``(d, n)``; the scan also runs backwards over the same step, B and C with this A, and both are summed
            (Vim's first form, arXiv 2401.09417).
        norms: of step, B and C, or None.
        return_last_state: also return the state ``(b, d, n)`` behind the last position; not with ``A_b``.
        how: who convolves and scans.

    Returns:
        ``y (b, d, l)``, or ``y`` and the last state.
    """
    if xz.dim() != 3 or xz.shape[1] != 2 * A.shape[0]:
        raise InputError(f"xz has shape {tuple(xz.shape)}, want (b, 2·d, l) with A (d, n), given A {tuple(A.shape)}")
    x, z = xz.chunk(2, dim=1)
    rank, states = weights.delta_proj.shape[1], A.shape[1]
    x = how.conv(x, weights.conv1d.flatten(1), weights.conv1d_bias, activation="silu")
    x_dbl = torch.matmul(weights.x_proj, x)  # (b, r + 2n, l)
    delta = torch.matmul(weights.delta_proj, x_dbl[:, :rank])
    if B is None:
        B = _biased(x_dbl[:, rank : rank + states], weights.B_proj_bias)
    if C is None:
        C = _biased(x_dbl[:, -states:], weights.C_proj_bias)
    if norms is not None:
        B, C = _normed(B, norms.B, norms.eps), _normed(C, norms.C, norms.eps)
        delta = _normed(delta, norms.delta, norms.eps)
    if A_b is None:
        return how.scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    y: Tensor = how.scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    x, delta, B, C, z = (_flipped(t) for t in (x, delta, B, C, z))
    back: Tensor = how.scan(x, delta, A_b, B, C, D, z, delta_bias, delta_softplus)
    return y + back.flip(-1)


def _biased(t: Tensor, bias: Tensor | None) -> Tensor:
    return t if bias is None else t + bias.to(t.dtype)[:, None]


def _normed(t: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``(b, m, l)``, normed over ``m``."""
    if weight is None:
        return t
    normed = F.rms_norm(t.transpose(1, 2).to(weight.dtype), weight.shape, weight, eps)
    return normed.transpose(1, 2).to(t.dtype)


def _flipped(t: Tensor) -> Tensor:
    return t.flip(-1) if t.dim() > 2 else t  # a B or C of two axes is the same at each position


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Run a Mamba block behind its first projection: ``xz (b, 2·d, l) → (b, l, c)``.

    Under autocast the projections run in its dtype, in which the output is then, as in mamba-ssm.

    Args:
        xz, A, B, C, D, delta_bias, delta_softplus: as of `inner`.
        conv1d_weight, conv1d_bias: ``(d, 1, w)`` and ``(d,)`` or None.
        x_proj_weight, delta_proj_weight: ``(r + 2n, d)`` and ``(d, r)``.
        out_proj_weight, out_proj_bias: ``(c, d)`` and ``(c,)`` or None.
        B_proj_bias, C_proj_bias: ``(n,)`` or None.
        checkpoint_lvl: taken and not used: what backward keeps is the operators' affair here.
        b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps: as of `Norms`. They get gradients, as they do not in
            mamba-ssm.
    """
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    norms = Norms(b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    y = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus, norms=norms)
    return _projected(y, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` by torch's convolution and `selective_scan_ref`. mamba-ssm's ignores ``delta_softplus``."""
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    y = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus, how=PLAIN)
    return _projected(y, out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn`, scanned both ways: ``A_b (d, n)`` is the decay of the way back (Vim, arXiv 2401.09417)."""
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    y = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus, A_b=A_b)
    return _projected(y, out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn` by torch's convolution and `selective_scan_ref`."""
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    y = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus, A_b=A_b, how=PLAIN)
    return _projected(y, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` without its last projection: ``xz (b, 2·d, l) → y (b, d, l)``, channels first (Vim)."""
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    y: Tensor = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus)
    return y


def mamba_inner_ref_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn_no_out_proj` by torch's convolution and `selective_scan_ref`."""
    weights = Weights(conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B_proj_bias, C_proj_bias)
    y: Tensor = inner(xz, weights, A, B, C, D, delta_bias, delta_softplus, how=PLAIN)
    return y


def _projected(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``(b, d, l) → (b, l, c)``."""
    return F.linear(y.transpose(1, 2), weight, bias)
