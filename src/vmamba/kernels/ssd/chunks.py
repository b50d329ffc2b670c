"""How sequences are cut into chunks, and which form of the products runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.ssd import by_head, by_quotients
from vmamba.kernels.ssd.states import Chunks, Sequences

#: Positions in a chunk where their number may be chosen, and if an even cut allows it.
_CHUNK, _FEWEST, _MOST = 56, 40, 72
#: Elements of ``x`` worked on at a time: near a CPU's cache; elsewhere as many as bound the memory.
_PART = {"cpu": 1 << 19}
_PART_ELSEWHERE = 1 << 26


class _Cut(NamedTuple):
    """How a sequence is cut: ``chunks`` of ``size`` positions, of which the last ``padding`` are made up."""

    size: int
    chunks: int
    padding: int

    def apply(self, t: Tensor) -> Tensor:
        """``(s, l, …)`` as ``(s, z, q, …)``. Positions made up take no step, so that they change nothing."""
        if not isinstance(self.padding, int) or self.padding:
            t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, self.padding))
        cut: Tensor = t.unflatten(1, (self.chunks, self.size))
        return cut

    def undo(self, parts: Sequence[Tensor]) -> Tensor:
        """``(…, z, q, …)``, several of them along the first axis, as one ``(s, l, …)``."""
        t = (parts[0] if len(parts) == 1 else torch.cat(list(parts))).flatten(1, 2)
        if not isinstance(self.padding, int):  # a slice would ask the tracer to prove that length is smaller
            return F.pad(t, (0, 0) * (t.dim() - 2) + (0, -self.padding))
        return t[:, : -self.padding] if self.padding else t


def forward(given: Sequences, ends: bool, chunk_size: int | None, backwards: bool) -> tuple[Tensor, Tensor]:
    """Scan sequences, without a skip; ``backwards`` from their last position to the first.

    Returns:
        ``y`` like ``x`` and, where ``ends``, the last states like ``start``, else nothing.
    """
    cut = _cut(given.x.shape[1], chunk_size)
    ys, lasts = [], []
    for part in _parts(cut, given, backwards):
        y, last = _form(part).forward(part, ends)
        ys.append(y)
        lasts.append(last)
    return cut.undo(ys), lasts[0] if len(lasts) == 1 or not ends else torch.cat(lasts)


def gradients(
    dy: Tensor, dlast: Tensor | None, given: Sequences, chunk_size: int | None, backwards: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy · y) + sum(dlast · last)`` for what is `given`, one by one."""
    cut = _cut(given.x.shape[1], chunk_size)
    rows, done, dys = [], 0, cut.apply(dy)
    for part in _parts(cut, given, backwards):
        own = slice(done, done := done + part.x.shape[0])
        rows.append(_form(part).gradients(dys[own], None if dlast is None else dlast[own], part))
    *of_sequences, of_start = zip(*rows, strict=True)
    return *map(cut.undo, of_sequences), None if given.start is None else torch.cat(of_start)


def _cut(length: int, size: int | None) -> _Cut:
    if not isinstance(length, int):
        size = _CHUNK if size is None else size
        # Even, so that the tracer can prove that it is never 1, a size that it would treat apart.
        chunks = 2 * ((length + 2 * size - 1) // (2 * size))
        return _Cut(size, chunks, size * chunks - length)
    if size is None:
        size = length if length <= _MOST else _even(length)
    chunks = -(-length // size)
    size = -(-length // chunks)  # as even as can be
    return _Cut(size, chunks, size * chunks - length)


def _even(length: int) -> int:
    """A size near `_CHUNK` that divides the length, so that nothing is padded, or `_CHUNK`."""
    sizes = (size for size in range(_FEWEST, _MOST + 1) if not length % size)
    return min(sizes, key=lambda size: abs(size - _CHUNK), default=_CHUNK)


def _parts(cut: _Cut, given: Sequences, backwards: bool) -> Iterator[Chunks]:
    """Cut the sequences so that a part has some `_PART` elements; one part if traced, one, empty, of an empty batch."""
    x, dt, log_decay, B, C = map(cut.apply, given[:5])
    start = given.start
    total = log_decay.flip(2).cumsum(2).flip(2) if backwards else log_decay.cumsum(2)
    most = _PART.get(x.device.type, _PART_ELSEWHERE)
    if _torch.is_traced() or x.numel() <= most:
        yield Chunks(x, dt, total, B, C, start, backwards)
        return
    items = max(1, most // x[:1].numel())
    for i in range(0, x.shape[0], items):
        own = slice(i, i + items)
        first = None if start is None else start[own]
        yield Chunks(x[own], dt[own], total[own], B[own], C[own], first, backwards)


def _form(part: Chunks) -> ModuleType:
    """Which form of the products runs it.

    What decays are is asked on a CPU alone: elsewhere the answer would be waited for, and graphs cannot depend on it.
    """
    plain = not torch.is_grad_enabled() and _torch.is_plain(part.x)
    return by_quotients if plain and part.x.device.type == "cpu" and by_quotients.fits(part) else by_head
