"""The oracles: the scans as the recurrences they are, one step at a time, in any float dtype, and their 2-d form.

Nothing here is fast. Every kernel of the package is tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scan.orders import directions_of, from_sequence, to_sequence


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Run ``h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t``, ``y_t = C_t · h_t + D u_t`` (Mamba, arXiv 2312.00752, Alg. 2).

    ``u, delta (b, k·d, l)``; ``A (k·d, n)``; ``B, C (b, k, n, l)``; ``D, delta_bias (k·d)`` or None.
    State and output are float64 where ``u`` is, else float32. Differentiable by autograd.
    """
    return selective_scan_states_reference(u, delta, A, B, C, D, delta_bias, None, None, delta_softplus)[0]


def selective_scan_states_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """`selective_scan_reference` from ``h_0 = initial_state``, gated by ``silu(z)``; and the last state.

    ``z (b, k·d, l)``, ``initial_state (b, k·d, n)``, or None; returns ``y (b, k·d, l)`` and ``h_l (b, k·d, n)``.
    """
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(state_dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    channels_per_direction = u.shape[1] // B.shape[1]
    B = B.repeat_interleave(channels_per_direction, dim=1)  # (b, k·d, n, l)
    C = C.repeat_interleave(channels_per_direction, dim=1)

    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1]) if initial_state is None else initial_state.to(state_dtype)
    ys = []
    # Unbound, not indexed step by step: each index would have a gradient as long as the sequence.
    for u_t, step, B_t, C_t in zip(*(t.unbind(-1) for t in (u[:, :, None], delta[:, :, None], B, C)), strict=True):
        h = torch.exp(step * A) * h + step * B_t * u_t  # u_t, step (b, k·d, 1); B_t, C_t (b, k·d, n)
        ys.append((h * C_t).sum(-1))
    y = torch.stack(ys, dim=-1)
    if D is not None:
        y = y + D.to(state_dtype)[:, None] * u
    return y if z is None else y * F.silu(z.to(state_dtype)), h


def ss2d_scan_reference(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str = "cross2d",
    delta_softplus: bool = True,
) -> Tensor:
    """Read the map in each direction, project the step, run the recurrence, sum in place (arXiv 2401.10166, §4.2).

    Shapes as of `vmamba.scan.ss2d_scan`.
    """
    _, h, w, _ = x.shape
    (_, d, r), n = dt_weight.shape, A.shape[1]
    image, maps = x.permute(0, 3, 1, 2), x_dbl.permute(0, 3, 4, 1, 2)  # (b, d, h, w), (b, k, r + 2n, h, w)
    parts = []
    for i, direction in enumerate(directions_of(scan_mode)):
        own = slice(i * d, (i + 1) * d)
        low_rank, B, C = to_sequence(maps[:, i], direction).split([r, n, n], dim=1)
        part = selective_scan_reference(
            to_sequence(image, direction),
            torch.matmul(dt_weight[i], low_rank.to(dt_weight.dtype)),
            A[own],
            B[:, None],
            C[:, None],
            None if D is None else D[own],
            None if dt_bias is None else dt_bias[i],
            delta_softplus,
        )
        parts.append(from_sequence(part, direction, h, w))
    return torch.stack(parts).sum(0).permute(0, 2, 3, 1)


def ssd_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``S_t = exp(δ_t A) S_{t-1} + δ_t x_t B_tᵀ``, ``y_t = S_t C_t + D x_t`` (Mamba-2, arXiv 2405.21060, §6).

    Shapes as of `vmamba.scan.ssd_scan`; returns ``y (b, l, h, p)`` and the last states ``(b, h, p, n)``, float64 where
    ``x`` is, else float32. Differentiable by autograd.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    b, _, heads, p = x.shape
    B, C = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (B, C))  # (b, l, h, n)
    state = x.new_zeros(b, heads, p, B.shape[3]) if initial_states is None else initial_states.to(dtype)
    ys = []
    for x_t, step, B_t, C_t in zip(*(t.unbind(1) for t in (x, dt, B, C)), strict=True):
        driven = (step[..., None] * x_t)[..., None] * B_t[:, :, None]
        state = torch.exp(step * A)[..., None, None] * state + driven
        ys.append((state * C_t[:, :, None]).sum(-1))
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).to(dtype) * x
    return y, state
