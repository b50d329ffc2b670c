"""Stands in for ``mamba_ssm.ops.triton.ssd_combined``: Mamba-2's scan, alone and with all that surrounds it in a layer.

Letters as of `vmamba.ssd_scan`: ``b`` batch, ``l`` length, ``h`` heads of ``p`` channels, ``g`` groups, ``n`` states.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.conv1d import causal_conv1d
from vmamba.integrations.mamba_ssm.mamba2.layernorm_gated import rmsnorm_fn
from vmamba.integrations.mamba_ssm.modules.scan import wide
from vmamba.scan import ssd_scan

__all__ = ["mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"]

#: Bounds that no step reaches.
NO_LIMIT = (0.0, math.inf)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Run Mamba-2's scan (arXiv 2405.21060, §6) by `vmamba.ssd_scan`.

    Args:
        x: input ``(b, l, h, p)``.
        dt: step ``(b, l, h)``.
        A: decay of each head ``(h,)``.
        B, C: input and output matrix ``(b, l, g, n)``.
        chunk_size: at least 1; `vmamba.ssd_scan` takes chunks of its own size, which changes rounding only.
        D: skip ``(h,)`` or ``(h, p)`` or None.
        z: gate ``(b, l, h, p)`` or None; the output is multiplied by silu(z).
        dt_bias: ``(h,)`` or None.
        initial_states: ``(b, h, p, n)`` or None; enters the first sequence of a row.
        seq_idx: ``(b, l)`` of integers or None: a row holds several sequences, one behind the other, and where the
            number changes the state begins at zero. Packed rows are cut where one begins, and scanned piece by piece.
        cu_seqlens: where each sequence of a single row begins, and the end: ``(sequences + 1,)`` of integers; needed
            for ``return_varlen_states``, with a ``seq_idx`` that says the same.
        dt_softplus: whether the step goes through softplus.
        dt_limit: bounds of the step, behind softplus.
        return_final_states: also return the states behind the last position ``(b, h, p, n)``.
        return_varlen_states: also return the states behind each sequence of the row ``(sequences, h, p, n)``.

    Returns:
        ``y (b, l, h, p)`` in the dtype of ``x``, or a tuple of that and the states asked for, in this order, float32
        (float64 for float64 ``x``). All carry gradients.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; the message shows them.
    """
    _check_chunk(chunk_size)
    if z is not None and z.shape != x.shape:
        raise InputError(f"z has shape {tuple(z.shape)}, want x's shape {tuple(x.shape)}")
    if return_varlen_states and cu_seqlens is None:
        raise InputError("return_varlen_states needs cu_seqlens: where each sequence begins, and the end")
    step = steps(dt, dt_bias, dt_softplus, dt_limit)
    y, states = scan(x, step, A, B, C, D, initial_states, seq_idx, cu_seqlens if return_varlen_states else None)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    wanted = [states.last] if return_final_states else []
    if return_varlen_states:
        wanted.append(torch.cat(states.ends))
    y = y.to(x.dtype)
    return (y, *wanted) if wanted else y


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute all of a `Mamba2` between its projections, and the last one where it is given; see `mixed`.

    Args:
        zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, initial_states, seq_idx, dt_limit: as of `mixed`.
        chunk_size: as of `mamba_chunk_scan_combined`.
        return_final_states: also return the scan's states behind the last position.
        activation, rmsnorm_weight, rmsnorm_eps, headdim, ngroups, norm_before_gate: as of `mixed`.
        outproj_weight, outproj_bias: the last projection ``(c, m + d)`` and ``(c,)``; without a weight there is none.

    Returns:
        ``(b, l, m + d)`` or projected ``(b, l, c)``, in the dtype of ``zxbcdt``, under autocast in its dtype; or that
        and the states ``(b, h, p, n)``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; the message shows them.
    """
    _check_chunk(chunk_size)
    out, states = mixed(
        zxbcdt,
        conv1d_weight,
        conv1d_bias,
        dt_bias,
        A,
        D,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_limit=dt_limit,
        activation=activation,
        rmsnorm_weight=rmsnorm_weight,
        rmsnorm_eps=rmsnorm_eps,
        headdim=headdim,
        ngroups=ngroups,
        norm_before_gate=norm_before_gate,
    )
    if outproj_weight is not None:
        out = F.linear(out, outproj_weight, outproj_bias)
    return (out, states.last) if return_final_states else out


class States(NamedTuple):
    """The states ``(b, h, p, n)`` behind the last position, and behind each piece that the rows were cut into."""

    last: Tensor
    ends: list[Tensor]


def mixed(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    *,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> tuple[Tensor, States]:
    """Convolve, scan, norm and gate (arXiv 2405.21060, §7, Fig. 6).

    Args:
        zxbcdt: ``(b, l, 2m + 2d + 2gn + h)`` with ``d = h·p``: gate and input of an MLP of m channels (0 for none),
            the scan's gate, its input, B and C, which are convolved, and its steps.
        conv1d_weight, conv1d_bias: ``(d + 2gn, w)`` and ``(d + 2gn,)``; the bias may be None.
        dt_bias, A: ``(h,)``; the bias may be None. The steps go through softplus.
        D: skip ``(h,)`` or ``(h, p)`` or None.
        initial_states, seq_idx, cu_seqlens, dt_limit: as of `mamba_chunk_scan_combined`; the convolution begins anew
            with each sequence too.
        activation: behind the convolution, ``"silu"``, ``"swish"`` or None.
        rmsnorm_weight: ``(d,)``, for a norm of each group's channels; without, the scan's output is just gated.
        rmsnorm_eps: added to the mean square.
        headdim: channels of a head ``p``; may be None where D has them.
        ngroups: ``g``.
        norm_before_gate: ``norm(y) · silu(z)`` instead of ``norm(y · silu(z))``.

    Returns:
        ``(b, l, m + d)``, the MLP's channels first, in the dtype of ``zxbcdt``, and the scan's states.
    """
    heads = A.shape[0]
    p = D.shape[1] if D is not None and D.dim() == 2 else headdim
    if p is None:
        raise InputError("how many channels a head has is not known: give headdim, or D of shape (h, p)")
    d, rows = heads * p, conv1d_weight.shape[0]
    n = (rows - d) // (2 * ngroups)
    m = (zxbcdt.shape[-1] - d - rows - heads) // 2
    if n < 1 or m < 0 or (d + 2 * ngroups * n, 2 * m + d + rows + heads) != (rows, zxbcdt.shape[-1]):
        raise InputError(
            f"zxbcdt {tuple(zxbcdt.shape)} and conv1d_weight {tuple(conv1d_weight.shape)} do not fit {heads} heads of "
            f"{p} channels in {ngroups} groups; want (b, l, 2m + 2d + 2gn + h) and (d + 2gn, w) with d = {d}, g = "
            f"{ngroups}, h = {heads}"
        )
    z0, x0, z, xBC, dt = zxbcdt.split([m, m, d, rows, heads], dim=-1)
    xBC = causal_conv1d(xBC.mT, conv1d_weight, conv1d_bias, seq_idx, None, activation).mT
    x, B, C = xBC.split([d, ngroups * n, ngroups * n], dim=-1)
    x, B, C = x.unflatten(-1, (heads, p)), B.unflatten(-1, (ngroups, n)), C.unflatten(-1, (ngroups, n))
    y, states = scan(x, steps(dt, dt_bias, True, dt_limit), A, B, C, D, initial_states, seq_idx, cu_seqlens)
    y = y.flatten(2)
    if rmsnorm_weight is None:
        y = y * F.silu(z.to(y.dtype))
    else:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, d // ngroups, norm_before_gate)
    y = y.to(zxbcdt.dtype)
    return (torch.cat([F.silu(z0) * x0, y], dim=-1) if m else y), states


def steps(dt: Tensor, dt_bias: Tensor | None, softplus: bool, limit: tuple[float, float]) -> Tensor:
    """The steps ``(…, h)`` as the scan takes them, in float32 (float64 for float64)."""
    if dt_bias is not None and dt_bias.shape != dt.shape[-1:]:
        raise InputError(f"dt_bias has shape {tuple(dt_bias.shape)}, want (h,) of dt {tuple(dt.shape)}")
    step = wide(dt)
    if dt_bias is not None:
        step = step + dt_bias.to(step.dtype)
    return (F.softplus(step) if softplus else step).clamp(*limit)


def scan(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, States]:
    """`vmamba.ssd_scan`, piece by piece where rows hold several sequences; see `mamba_chunk_scan_combined`."""
    bounds = _bounds(x, seq_idx)
    if cu_seqlens is not None and (len(x) != 1 or bounds != cu_seqlens.tolist()):
        raise InputError(
            f"cu_seqlens {cu_seqlens.tolist()} is for a single row whose seq_idx changes there; given {len(x)} row(s) "
            f"with sequences at {bounds}"
        )
    ys: list[Tensor] = []
    ends: list[Tensor] = []
    state = initial_states
    for start, end in pairwise(bounds):
        if start and seq_idx is not None:
            begins = seq_idx[:, start] != seq_idx[:, start - 1]
            state = ends[-1].masked_fill(begins[:, None, None, None], 0.0)
        own = slice(start, end)
        y, state = ssd_scan(
            x[:, own], step[:, own], A, B[:, own], C[:, own], D, initial_states=state, return_final_states=True
        )
        ys.append(y)
        ends.append(state)
    return (ys[0] if len(ys) == 1 else torch.cat(ys, dim=1)), States(ends[-1], ends)


def _bounds(x: Tensor, seq_idx: Tensor | None) -> list[int]:
    """Where a sequence of any row begins, and the end."""
    length = x.shape[1]
    if seq_idx is None:
        return [0, length]
    if seq_idx.shape != x.shape[:2] or seq_idx.is_floating_point():
        raise InputError(
            f"seq_idx is {seq_idx.dtype} of shape {tuple(seq_idx.shape)}, want integers (b, l) = {tuple(x.shape[:2])}"
        )
    changes = (seq_idx[:, 1:] != seq_idx[:, :-1]).any(dim=0)
    return [0, *(changes.nonzero()[:, 0] + 1).tolist(), length]


def _check_chunk(chunk_size: int) -> None:
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}; want at least 1")
