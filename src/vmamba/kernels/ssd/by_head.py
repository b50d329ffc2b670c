"""A chunk's products with a matrix of decays for each head: no quotients, so that nothing over- or underflows.

`forward` is plain operations, traceable, and differentiable by autograd and `torch.func` themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vmamba.kernels.ssd.states import Chunks, carry


def forward(part: Chunks, ends: bool) -> tuple[Tensor, Tensor]:
    """``y (s, z, q, m, p)`` and, where ``ends``, the last states ``(s, n, m·p)``, else nothing."""
    x, dt, total, B, C, start, backwards = part
    driven = x * dt[..., None]
    # Inside a chunk (§6, step 1).
    within = (C @ B.mT)[:, None] * _decays(part)
    y = (within @ driven.movedim(3, 1)).movedim(1, 3)
    if part.one and start is None and not ends:
        return y, y.new_empty(0)
    # What each chunk adds to the state (step 2), the states before the chunks (3), and what they give (4).
    left = driven * torch.exp(part.end[:, :, None] - total)[..., None]
    kept = part.over_channels(torch.exp(part.end))
    entering, last = carry(kept, B.mT @ left.flatten(-2), start, backwards)
    if not part.one or start is not None:
        y = torch.addcmul(y, (C @ entering).unflatten(-1, x.shape[-2:]), torch.exp(total)[..., None])
    return y, last if ends else y.new_empty(0)


def gradients(dy: Tensor, dlast: Tensor | None, part: Chunks) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy · y) + sum(dlast · last)`` for x, dt, the log of each step's decay, B, C and start.

    ``dy (s, z, q, m, p)``, ``dlast (s, n, m·p)`` or None.
    """
    x, dt, total, B, C, start, backwards = part
    driven, dy_by_head = x * dt[..., None], dy.movedim(3, 1)
    products, decays = (C @ B.mT)[:, None], _decays(part)
    dwithin = (dy_by_head @ driven.movedim(3, 1).mT) * decays  # (s, m, z, q, q)
    dproducts = dwithin.sum(1)
    ddecays = dwithin * products
    dtotal = (ddecays.sum(-1) - ddecays.sum(-2)).movedim(1, -1)
    ddriven = ((products * decays).mT @ dy_by_head).movedim(1, 3)
    dB, dC, dstart = dproducts.mT @ C, dproducts @ B, None
    if not part.one or start is not None or dlast is not None:
        rise, fall = torch.exp(total)[..., None], torch.exp(part.end[:, :, None] - total)[..., None]
        kept, left, out = torch.exp(part.end), (driven * fall).flatten(-2), (dy * rise).flatten(-2)
        entering, _ = carry(part.over_channels(kept), B.mT @ left, start, backwards)
        leaving, dstart = carry(part.over_channels(kept), C.mT @ out, dlast, not backwards)  # gradients of the states
        dB, dC = dB + left @ leaving.mT, dC + out @ entering.mT
        dleft, heads = B @ leaving, x.shape[-2:]
        ddriven = torch.addcmul(ddriven, dleft.unflatten(-1, heads), fall)
        by_left = (left * dleft).unflatten(-1, heads).sum(-1)
        dtotal = dtotal + (out * (C @ entering)).unflatten(-1, heads).sum(-1) - by_left
        by_state = (entering * leaving).unflatten(-1, heads).sum((2, 4))
        part.at_end(dtotal).add_(by_left.sum(2)).addcmul_(kept, by_state)
    return ddriven * dt[..., None], (ddriven * x).sum(-1), part.of_steps(dtotal), dB, dC, dstart


def _decays(part: Chunks) -> Tensor:
    """``exp(total_i - total_j)`` where position j is not behind i, else 0, ``(s, m, z, q, q)``."""
    total = part.total.movedim(-1, 1)
    size = total.shape[-1]
    future = torch.full((size, size), -math.inf, dtype=total.dtype, device=total.device)
    future = future.tril(-1) if part.backwards else future.triu(1)
    return torch.exp(total[..., :, None] - total[..., None, :] + future)
