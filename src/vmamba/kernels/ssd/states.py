"""Sequences, a part of them cut into chunks, and its states, carried from chunk to chunk."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.linear_recurrence import solve


class Sequences(NamedTuple):
    """What is scanned.

    Attributes:
        x: ``(s, l, m, p)``.
        dt: step ``(s, l, m)``.
        log_decay: the log of what a step leaves of the state ``(s, l, m)``.
        B, C: ``(s, l, n)``.
        start: states to begin with ``(s, n, m·p)``, or None for zero.
    """

    x: Tensor
    dt: Tensor
    log_decay: Tensor
    B: Tensor
    C: Tensor
    start: Tensor | None


class Chunks(NamedTuple):
    """A part of the sequences, cut into chunks.

    Attributes:
        x: ``(s, z, q, m, p)``.
        dt: step ``(s, z, q, m)``.
        total: the log of the decay since before the chunk, this position's with it, ``(s, z, q, m)``.
        B, C: ``(s, z, q, n)``.
        start: states before the first chunk ``(s, n, m·p)``, or None for zero.
        backwards: whether the first chunk is the last, and its first position the last.
    """

    x: Tensor
    dt: Tensor
    total: Tensor
    B: Tensor
    C: Tensor
    start: Tensor | None
    backwards: bool

    @property
    def end(self) -> Tensor:
        """The log of a whole chunk's decay ``(s, z, m)``."""
        return self.at_end(self.total)

    def at_end(self, t: Tensor) -> Tensor:
        """Of ``t (s, z, q, m)`` what is at the chunks' last positions, ``(s, z, m)``."""
        return t[:, :, 0 if self.backwards else -1]

    @property
    def one(self) -> bool:
        """Whether there is one chunk for sure."""
        return isinstance(self.x.shape[1], int) and self.x.shape[1] == 1

    def over_channels(self, of_heads: Tensor) -> Tensor:
        """``(…, m)`` as ``(…, 1, m·p)``."""
        return of_heads[..., None].expand(*of_heads.shape, self.x.shape[-1]).flatten(-2)[..., None, :]

    def masked(self, products: Tensor) -> Tensor:
        """``products (…, q, q)`` where column j is not behind row i, elsewhere 0; in the same memory."""
        return products.triu_() if self.backwards else products.tril_()

    def of_steps(self, dtotal: Tensor) -> Tensor:
        """The gradient of the log of each step's decay, from that of ``total``."""
        return dtotal.cumsum(2) if self.backwards else dtotal.flip(2).cumsum(2).flip(2)


def carry(
    kept: Tensor, added: Tensor, start: Tensor | None, backwards: bool, *, before: bool = False
) -> tuple[Tensor, Tensor]:
    """Carry states from chunk to chunk: ``S' = kept S + added``, or ``S' = kept (S + added)`` if added ``before``.

    Args:
        kept: ``(s, z, 1, m·p)``.
        added: ``(s, z, n, m·p)``.
        start: ``(s, n, m·p)``, or None for zero.
        backwards: from the last chunk to the first.
        before: for what autograd, transforms and tracers do not see only.

    Returns:
        the states before each chunk, like ``added``, and the one behind all.
    """
    if not before and (torch.is_grad_enabled() or not _torch.is_plain(added)):
        return _solved(kept, added, start, backwards)
    entering, last = torch.empty_like(added), torch.empty_like(added[:, 0])
    keeps, adds, states = list(kept.unbind(1)), list(added.unbind(1)), list(entering.unbind(1))
    if backwards:
        keeps, adds, states = keeps[::-1], adds[::-1], states[::-1]
    states.append(last)
    states[0].zero_() if start is None else states[0].copy_(start)
    for keep, more, state, after in zip(keeps, adds, states, states[1:], strict=False):
        if before:
            torch.add(state, more, out=after).mul_(keep)
        else:
            torch.addcmul(more, keep, state, out=after)
    return entering, last


def _solved(kept: Tensor, added: Tensor, start: Tensor | None, backwards: bool) -> tuple[Tensor, Tensor]:
    """`carry` without a loop, which would be as many operations in a graph, and without writes."""
    first = torch.zeros_like(added[:, :1]) if start is None else start[:, None]
    if backwards:
        kept, drive = F.pad(kept, (0, 0, 0, 0, 0, 1)), torch.cat([added, first], 1)
    else:
        kept, drive = F.pad(kept, (0, 0, 0, 0, 1, 0)), torch.cat([first, added], 1)
    states = solve(kept.movedim(1, -1), drive.movedim(1, -1), reverse=backwards).movedim(-1, 1)
    return (states[:, 1:], states[:, 0]) if backwards else (states[:, :-1], states[:, -1])
