"""Stands in for ``mamba_ssm.ops.triton.selective_state_update``: one step of the selective scan, for decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.modules.scan import wide_dtype
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Move ``state`` on by one position, in place, and return that position's output.

    ``h = exp(δA) h + δ B x`` and ``y = C · h + D x``, gated by silu(z) where there is z (arXiv 2312.00752, Alg. 2), in
    float32 (float64 where x or the state is). With heads, all but B and C have an axis ``h`` for them, of which each
    group of B and C serves as many.

    Args:
        state: ``(b, d, n)`` or ``(b, h, d, n)``; changed without gradients.
        x: ``(b, d)`` or ``(b, h, d)``.
        dt: step, shaped as ``x``.
        A: ``(d, n)`` or ``(h, d, n)``.
        B: ``(b, n)`` or ``(b, g, n)``.
        C: shaped as ``B``.
        D: ``(d,)`` or ``(h, d)``, or None.
        z: shaped as ``x``, or None.
        dt_bias: ``(d,)`` or ``(h, d)``, or None.
        dt_softplus: whether the step goes through softplus.
        state_batch_indices: not supported.

    Returns:
        ``y``, shaped as ``x`` and in its dtype, with gradients but for what the state holds of earlier positions.

    Raises:
        InputError: shapes that do not fit; the message shows them.
        NotProvidedError: ``state_batch_indices``.
    """
    if state_batch_indices is not None:
        raise NotProvidedError(
            "state_batch_indices is not provided by vmamba's stand-in; give the rows themselves, "
            "state[state_batch_indices], and write them back"
        )
    heads = state.dim() == 4
    own = state if heads else state.unsqueeze(1)  # a view, so that the caller's state changes
    x_, dt_, z_, B_, C_ = (t.unsqueeze(1) if t is not None and t.dim() == 2 else t for t in (x, dt, z, B, C))
    A_ = A.unsqueeze(0) if A.dim() == 2 else A
    D_, bias = (t.unsqueeze(0) if t is not None and t.dim() == 1 else t for t in (D, dt_bias))
    assert x_ is not None
    assert dt_ is not None
    assert B_ is not None
    assert C_ is not None
    _check(own, {"x": x_, "dt": dt_, "A": A_, "B": B_, "C": C_, "D": D_, "z": z_, "dt_bias": bias})

    to = torch.promote_types(wide_dtype(x), wide_dtype(state))
    with _torch.without_autocast(state.device.type):
        u, step = x_.to(to), dt_.to(to)
        if bias is not None:
            step = step + bias.to(to)
        if dt_softplus:
            step = F.softplus(step)
        B_, C_ = (t.to(to).repeat_interleave(own.shape[1] // t.shape[1], dim=1)[:, :, None] for t in (B_, C_))
        drive = (step * u)[..., None] * B_
        h = torch.exp(step[..., None] * A_.to(to)) * own.detach().to(to) + drive
        own.detach().copy_(h.detach())
        y = (h * C_).sum(-1)
        if D_ is not None:
            y = y + D_.to(to) * u
        if z_ is not None:
            y = y * F.silu(z_.to(to))
    y = y.to(x.dtype)
    return y if heads else y.squeeze(1)


#: mamba-ssm's name for the function without Triton; here there is one.
selective_state_update_ref = selective_state_update


def _check(state: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise `InputError` unless all fit to ``state (b, h, d, n)``."""
    if state.dim() != 4:
        raise InputError(f"state has {state.dim() - 1} axes, want (b, d, n) or (b, h, d, n)")
    b, h, d, n = state.shape
    B = tensors["B"]
    groups = B.shape[1] if B is not None and B.dim() == 3 else 1
    if not groups or h % groups:
        raise InputError(f"B has {groups} groups, which must divide the {h} heads of the state")
    want = {
        "x": (b, h, d),
        "dt": (b, h, d),
        "A": (h, d, n),
        "B": (b, groups, n),
        "C": (b, groups, n),
        "D": (h, d),
        "z": (b, h, d),
        "dt_bias": (h, d),
    }
    for name, t in tensors.items():
        if t is not None and t.shape != want[name]:
            raise InputError(
                f"{name} has shape {tuple(t.shape)}, want {want[name]} for a state (b, h, d, n) = "
                f"{tuple(state.shape)}; h is 1 where there are no heads"
            )
