"""The oracle: the selective scan as the recurrence it is, one step at a time, in any float dtype.

Nothing here is fast. Every kernel of the package is tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(state_dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    channels_per_direction = u.shape[1] // B.shape[1]
    B = B.repeat_interleave(channels_per_direction, dim=1)  # (b, k·d, n, l)
    C = C.repeat_interleave(channels_per_direction, dim=1)

    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    ys = []
    # Unbound, not indexed step by step: each index would have a gradient as long as the sequence.
    for u_t, step, B_t, C_t in zip(*(t.unbind(-1) for t in (u[:, :, None], delta[:, :, None], B, C)), strict=True):
        h = torch.exp(step * A) * h + step * B_t * u_t  # u_t, step (b, k·d, 1); B_t, C_t (b, k·d, n)
        ys.append((h * C_t).sum(-1))
    y = torch.stack(ys, dim=-1)
    return y if D is None else y + D.to(state_dtype)[:, None] * u
