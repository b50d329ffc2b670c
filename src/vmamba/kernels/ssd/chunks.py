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

#: Positions in a chunk, about, and how many at most are one chunk: by quotients the first whose decays allow it.
_BY_QUOTIENTS = ((56, 72), (28, 36), (14, 18))
_BY_HEAD = (32, 64)
#: Elements of ``x`` worked on at a time: near a CPU's cache; elsewhere as many as bound the memory.
_PART = {"cpu": 1 << 19}
_PART_ELSEWHERE = 1 << 25


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
    cut, total, form = _plan(given, chunk_size, backwards)
    ys, lasts = [], []
    for part in _parts(cut, given, total, backwards):
        y, last = form.forward(part, ends)
        ys.append(y)
        lasts.append(last)
    return cut.undo(ys), lasts[0] if len(lasts) == 1 or not ends else torch.cat(lasts)


def gradients(
    dy: Tensor, dlast: Tensor | None, given: Sequences, chunk_size: int | None, backwards: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy · y) + sum(dlast · last)`` for what is `given`, one by one."""
    cut, total, form = _plan(given, chunk_size, backwards)
    rows, done, dys = [], 0, cut.apply(dy)
    for part in _parts(cut, given, total, backwards):
        own = slice(done, done := done + part.x.shape[0])
        rows.append(form.gradients(dys[own], None if dlast is None else dlast[own], part))
    *of_sequences, of_start = zip(*rows, strict=True)
    return *map(cut.undo, of_sequences), None if given.start is None else torch.cat(of_start)


def _plan(given: Sequences, size: int | None, backwards: bool) -> tuple[_Cut, Tensor, ModuleType]:
    """How to cut, the log of the decay since before each chunk, and which form of the products to run.

    What decays are is asked on a CPU alone: elsewhere the answer would be waited for, and graphs cannot depend on it.
    """
    x, log_decay = given.x, given.log_decay
    plain = not torch.is_grad_enabled() and _torch.is_plain(x)
    for about in _BY_QUOTIENTS if plain and x.device.type == "cpu" else ():
        cut = _cut(x.shape[1], size, *about)
        total = _total(cut.apply(log_decay), backwards)
        if by_quotients.fits(total, backwards):
            return cut, total, by_quotients
        if size is not None:
            break
    cut = _cut(x.shape[1], size, *_BY_HEAD)
    return cut, _total(cut.apply(log_decay), backwards), by_head


def _total(log_decay: Tensor, backwards: bool) -> Tensor:
    return log_decay.flip(2).cumsum(2).flip(2) if backwards else log_decay.cumsum(2)


def _cut(length: int, size: int | None, about: int, whole: int) -> _Cut:
    if not isinstance(length, int):
        size = about if size is None else size
        # Even, so that the tracer can prove that it is never 1, a size that it would treat apart.
        chunks = 2 * ((length + 2 * size - 1) // (2 * size))
        return _Cut(size, chunks, size * chunks - length)
    if size is None:  # one that divides the length pads nothing
        even = (size for size in range(about * 3 // 4, whole + 1) if not length % size)
        size = length if length <= whole else min(even, key=lambda size: abs(size - about), default=about)
    chunks = -(-length // size)
    size = -(-length // chunks)  # as even as can be
    return _Cut(size, chunks, size * chunks - length)


def _parts(cut: _Cut, given: Sequences, total: Tensor, backwards: bool) -> Iterator[Chunks]:
    """Cut the sequences so that a part has some `_PART` elements; one part if traced, one, empty, of an empty batch."""
    x, dt, B, C = map(cut.apply, (given.x, given.dt, given.B, given.C))
    start = given.start
    most = _PART.get(x.device.type, _PART_ELSEWHERE)
    if _torch.is_traced() or x.numel() <= most:
        yield Chunks(x, dt, total, B, C, start, backwards)
        return
    items = max(1, most // x[:1].numel())
    for i in range(0, x.shape[0], items):
        own = slice(i, i + items)
        first = None if start is None else start[own]
        yield Chunks(x[own], dt[own], total[own], B[own], C[own], first, backwards)
