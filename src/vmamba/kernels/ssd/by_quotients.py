"""A chunk's products with decays as quotients, ``exp(total_i - total_j) = exp(total_i) / exp(total_j)``.

So one product serves all heads of a group. It is for chunks whose decays are not too strong, and writes into its own
memory: autograd, transforms and tracers must not see it.

Both parts of a quotient are taken relative to ``half``, the square root of a whole chunk's decay, so that they stay
small; what enters a chunk and what leaves it is multiplied by it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.kernels.ssd.states import Chunks, carry

#: Neither part of a quotient is above e^40 or below e^-40, so that a product of two is still a normal float32.
_MOST = 40.0


def fits(total: Tensor, backwards: bool) -> bool:
    """Whether decays can be quotients, with ``total`` as of `Chunks`."""
    if not total.numel() or total.shape[2] == 1:  # a lone position's decay has a gradient of rounding errors
        return False
    half = total[:, :, :1] / 2 if backwards else total[:, :, -1:] / 2
    return bool((total - half).abs().amax() <= _MOST)


class _Pieces(NamedTuple):
    """What both ways are made of.

    Attributes:
        rise: ``exp(total) / half`` ``(s, z, q, m)``.
        scaled: input by step and by ``1 / rise`` ``(s, z, q, m·p)``.
        within: C Bᵀ without what lies behind ``(s, z, q, q)``.
        half: ``(s, z, 1, m·p)``.
    """

    rise: Tensor
    scaled: Tensor
    within: Tensor
    half: Tensor

    @classmethod
    def of(cls, part: Chunks) -> _Pieces:
        half = part.end / 2
        rise = torch.exp(part.total - half[:, :, None])
        scaled = (part.x * (part.dt / rise)[..., None]).flatten(-2)
        return cls(rise, scaled, part.masked(part.C @ part.B.mT), part.over_channels(torch.exp(half)))

    def carry(self, added: Tensor, start: Tensor | None, backwards: bool) -> tuple[Tensor, Tensor]:
        """States times ``half`` before each chunk, and the one behind all; ``added`` to the former."""
        beyond, first, last = torch.ones_like(self.half[:, :1]), self.half[:, 0], self.half[:, -1]
        if backwards:
            first, next_half = last, torch.cat([beyond, self.half[:, :-1]], 1)
        else:
            next_half = torch.cat([self.half[:, 1:], beyond], 1)
        return carry(self.half * next_half, added, None if start is None else start * first, backwards, before=True)


def forward(part: Chunks, ends: bool) -> tuple[Tensor, Tensor]:
    """See `by_head.forward`."""
    pieces = _Pieces.of(part)
    y = pieces.within @ pieces.scaled
    if part.one and part.start is None and not ends:
        last = y.new_empty(0)
    else:
        entering, last = pieces.carry(part.B.mT @ pieces.scaled, part.start, part.backwards)
        _add(y, part.C, entering)
    return y.unflatten(-1, part.x.shape[-2:]).mul_(pieces.rise[..., None]), last if ends else y.new_empty(0)


def gradients(dy: Tensor, dlast: Tensor | None, part: Chunks) -> tuple[Tensor | None, ...]:
    """See `by_head.gradients`."""
    x, dt, _, B, C, start, backwards = part
    pieces, heads = _Pieces.of(part), x.shape[-2:]
    rise, scaled, within, _ = pieces
    out = (dy * rise[..., None]).flatten(-2)
    dwithin = part.masked(out @ scaled.mT)
    dB, dC, dscaled, dstart = dwithin.mT @ C, dwithin @ B, within.mT @ out, None
    y, leaves = within @ scaled, None
    if not part.one or start is not None or dlast is not None:
        added = B.mT @ scaled
        entering, _ = pieces.carry(added, start, backwards)
        leaving, dstart = pieces.carry(C.mT @ out, dlast, not backwards)  # gradients of the states
        _add(dB, scaled, leaving.mT)
        _add(dC, out, entering.mT)
        _add(dscaled, B, leaving)
        _add(y, C, entering)
        leaves = added.add_(entering).mul_(leaving).unflatten(-1, heads).sum((2, 4))
    dscaled = dscaled.unflatten(-1, heads)
    by_step = (x * dscaled).sum(-1).div_(rise)
    # A decay's gradient is what comes of it: what the output behind it gives, less what the input before it takes.
    dtotal = y.mul_(out).unflatten(-1, heads).sum(-1).addcmul_(by_step, dt, value=-1)
    if leaves is not None:
        part.at_end(dtotal).add_(leaves)
    return dscaled.mul_((dt / rise)[..., None]), by_step, part.of_steps(dtotal), dB, dC, dstart


def _add(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product to ``total``; all ``(s, z, ·, ·)``."""
    total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
