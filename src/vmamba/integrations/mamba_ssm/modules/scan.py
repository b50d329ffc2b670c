"""mamba-ssm's selective scan on our kernels, and the same as a plain loop (arXiv 2312.00752, Alg. 2).

Letters as in `vmamba.scan.selective_scan`, with mamba-ssm's ``d`` for all channels, which ``g`` groups share evenly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.integrations.mamba_ssm.matrices import grouped
from vmamba.scan import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan as mamba-ssm's function of this name does, by the fastest kernel that is here.

    Autocast changes nothing, as in mamba-ssm: each tensor is taken in the dtype that it has.

    Args:
        u: input ``(b, d, l)``.
        delta: step ``(b, d, l)``.
        A: decay ``(d, n)``; real.
        B: input matrix ``(d, n)``, the same at each position, ``(b, n, l)`` or ``(b, g, n, l)``.
        C: output matrix, in any of these shapes.
        D: skip ``(d,)`` or None.
        z: gate ``(b, d, l)`` or None; the output is multiplied by silu(z).
        delta_bias: ``(d,)`` or None.
        delta_softplus: whether the step goes through softplus.
        return_last_state: also return the state behind the last position.

    Returns:
        ``y (b, d, l)`` in the dtype of ``u``, or ``y`` and the last state ``(b, d, n)``, float32 (float64 for float64
        ``u``). The last state carries gradients; mamba-ssm's does not.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or complex tensors.
    """
    B, C = grouped(u, A, B, C)
    with _torch.without_autocast(u.device.type):
        if return_last_state:
            return selective_scan(
                u, delta, A, B, C, D, delta_bias, delta_softplus, z=z, return_last_state=True, oflex=False
            )
        return selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, z=z, oflex=False)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the same as a loop over positions, in float32, or float64 for float64 ``u``; see `selective_scan_fn`."""
    B, C = grouped(u, A, B, C)
    dtype, wide = u.dtype, wide_dtype(u)
    with _torch.without_autocast(u.device.type):
        u, delta, A, B, C = (t.to(wide) for t in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(wide)[:, None]
        if delta_softplus:
            delta = F.softplus(delta)
        B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))  # (b, d, n, l)

        h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
        ys = []
        # Unbound, not indexed step by step: each index would have a gradient as long as the sequence.
        for u_t, step, B_t, C_t in zip(*(t.unbind(-1) for t in (u[:, :, None], delta[:, :, None], B, C)), strict=True):
            h = torch.exp(step * A) * h + step * B_t * u_t
            ys.append((h * C_t).sum(-1))
        y = torch.stack(ys, dim=-1)
        if D is not None:
            y = y + D.to(wide)[:, None] * u
        if z is not None:
            y = y * F.silu(z.to(wide))
    y = y.to(dtype)
    return (y, h) if return_last_state else y


def wide_dtype(t: Tensor) -> torch.dtype:
    """What states and sums are kept in: float32, or float64 for float64 ``t``."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def wide(t: Tensor) -> Tensor:
    """``t`` in `wide_dtype`."""
    return t.to(wide_dtype(t))
