"""One scan on a GPU, for both operators: its tensors as the kernels take them, and the launches both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vmamba.kernels.triton import backward, forward
from vmamba.kernels.triton.plan import Pairs, Plan, Tile, plan, processors

_CARRY_BLOCK = 128
# Products need sums of so many terms at least.
_LEAST_SUM = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16
_LEAST_RANK = 16


class Gradients(NamedTuple):
    """Partial sums of a backward pass.

    Attributes:
        columns: of the low-rank steps, B and C, ``(blocks, b, l, k, r + 2n)``.
        parameters: of the step projection's rows, its bias, A's states and D, ``(parts, k, r + 2 + n, d)``.
        rank, states: r and n.
    """

    columns: Tensor
    parameters: Tensor
    rank: int
    states: int

    def fill(self, weight: Tensor | None, bias: Tensor | None, A: Tensor | None, D: Tensor | None) -> None:
        """Sum the parts, in order, into the parameters' gradients."""
        sums = self.parameters.sum(0)  # (k, r + 2 + n, d)
        rank, directions, channels = self.rank, sums.shape[0], sums.shape[2]
        if weight is not None:
            weight.copy_(sums[:, :rank].transpose(1, 2))
        if bias is not None:
            bias.view(directions, channels).copy_(sums[:, rank])
        if D is not None:
            D.view(directions, channels).copy_(sums[:, rank + 1])
        if A is not None:
            A.view(directions, channels, self.states).copy_(sums[:, rank + 2 :].transpose(1, 2))


class Scan:
    """The inputs of a scan over the places of k directions.

    Args:
        u: ``(b, k, l, d)``; directions that share their pixels have stride 0 between them.
        steps: the low-rank steps ``(b, k, l, r)``, or the steps themselves ``(b, k, l, d)`` where there is no weight.
        weight: step projection ``(k, d, r)`` or None.
        bias: of the steps, ``(k·d)``, or None.
        A: ``(k·d, n)``.
        B, C: ``(b, k, l, n)``.
        D: ``(k·d)`` or None.
        walked: the directions' ways.
        softplus: whether steps go through softplus.
    """

    def __init__(
        self,
        u: Tensor,
        steps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        walked: Pairs,
        softplus: bool,
    ) -> None:
        self.images, self.directions, self.length, self.channels = u.shape
        self.states = A.shape[1]
        self.rank = 0 if weight is None else weight.shape[2]
        self.merged = u.stride(1) == 0  # the directions read the same pixels and add up
        self.u, self.steps, self.B, self.C = u, steps, B, C
        by_state = A.view(self.directions, self.channels, self.states).transpose(1, 2)  # channels beside each other
        self.weight, self.bias, self.A, self.D = (
            None if t is None else t.contiguous() for t in (weight, bias, by_state, D)
        )
        self.walked, self.softplus = walked, softplus
        side = 1 if self.merged else self.directions
        self.plan: Plan = plan(
            self.images, side, self.length, self.channels, self.states, self.rank, processors(u.device)
        )

    def forward(self, y: Tensor, saved: Tensor | None, workspace: Callable[[int], Tensor]) -> str:
        """Fill ``y (b, k, l, d)``, float32, and ``saved``."""
        with torch.cuda.device_of(self.u):  # Triton launches on the current device
            return self._forward(y, saved, workspace)

    def _forward(self, y: Tensor, saved: Tensor | None, workspace: Callable[[int], Tensor]) -> str:
        p, tile = self.plan, self.plan.forward
        start = y
        if p.chunks > 1:
            start = self._carried(self.u, self.B, adjoint=False, workspace=workspace)
        for state0, dir0, side in self._passes(tile):
            forward.outputs[(self.images * side * p.chunks * tile.programs(self.channels),)](
                self.u, self.steps, self.weight, self.bias, self.A, self.D, self.B, self.C,
                y, start, y if saved is None else saved,
                *_strides(self.u), *_strides(self.steps), *_strides(self.B), *_strides(self.C), *_strides(y),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                dir0, side, self.walked.backwards, state0 + dir0 * self.merged,
                *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, self.u, y), C_BYTES=_bytes(self.C), Y_BYTES=_bytes(y), GROUP=p.group,
                PAIR=2 if self.merged else 1, SAVE=saved is not None, SKIP=self.D is not None, CB=self._beside(),
            )  # fmt: skip
        return f"triton, {p.chunks} chunks of {p.chunk}, {tile.block} channels"

    def _passes(self, tile: Tile) -> Iterator[tuple[int, int, int]]:
        """First state, first direction, and directions side by side of each launch that adds to the same memory."""
        for state0 in range(0, self.states, tile.states):
            if self.merged:
                yield state0, 0, 1
                yield state0, 1, 1
            else:
                yield state0, 0, self.directions

    def backward(
        self, dy: Tensor, saved: Tensor, du: Tensor, ds: Tensor | None, workspace: Callable[[int], Tensor]
    ) -> Gradients:
        """Fill ``du (b, k, l, d)`` and, without a projection, ``ds`` alike; return the parts of the others.

        Args:
            dy: ``(b, k, l, d)``, float32.
            saved: what `forward` filled.
            workspace: makes memory for this call.
        """
        with torch.cuda.device_of(self.u):
            return self._backward(dy, saved, du, ds, workspace)

    def _backward(
        self, dy: Tensor, saved: Tensor, du: Tensor, ds: Tensor | None, workspace: Callable[[int], Tensor]
    ) -> Gradients:
        p, tile = self.plan, self.plan.backward
        start = self._carried(dy, self.C, adjoint=True, workspace=workspace) if p.chunks > 1 else dy
        width, blocks = self.rank + 2 * self.states, tile.programs(self.channels)
        shape = (blocks, self.images, self.length, self.directions, width)
        columns = workspace(math.prod(shape)).view(shape)
        held = (self.images * p.chunks, self.directions, self.rank + 2 + self.states, self.channels)
        parts = workspace(math.prod(held)).view(held)
        side = 1 if self.merged else self.directions
        programs = self.images * side * p.chunks * blocks
        tiles = p.group // tile.rows
        scratch = workspace(programs * tiles * tile.states * tile.block) if tiles > 1 else parts
        of_steps = self.steps if ds is None else ds
        for state0, dir0, side in self._passes(tile):
            backward.gradients[(programs,)](
                self.u, self.steps, self.weight, self.bias, self.A, self.D, self.B, self.C, dy, saved, start, du,
                of_steps, columns, parts, scratch,
                *_strides(self.u), *_strides(self.steps), *_strides(self.B), *_strides(self.C), *_strides(dy),
                *_strides(du), *_strides(of_steps),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                dir0, side, self.walked.backwards, state0 + dir0 * self.merged,
                *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, self.u, du), C_BYTES=_bytes(self.C), DY_BYTES=_bytes(dy), DU_BYTES=_bytes(du),
                DS_BYTES=_bytes(of_steps), COLUMN_BYTES=self.directions * width * columns.element_size(),
                GROUP=p.group, PAIR=2 if self.merged else 1, SKIP=self.D is not None,
                EXACT=self.steps.element_size() > 2, SHORT=tile.rows >= _LEAST_SUM,
            )  # fmt: skip
        return Gradients(columns, parts, self.rank, self.states)

    def _beside(self) -> int:
        """How many numbers C stands behind B where both are parts of one tensor, or 0."""
        apart = int(self.C.storage_offset() - self.B.storage_offset())
        same = self.B.untyped_storage()._cdata == self.C.untyped_storage()._cdata
        return apart if same and self.B.stride() == self.C.stride() and self.states == 1 and 0 < apart < 16 else 0

    def _carried(self, u: Tensor, B: Tensor, *, adjoint: bool, workspace: Callable[[int], Tensor]) -> Tensor:
        """The states, or adjoint states, that chunks begin with: ``(chunks, b, k, n, d)``."""
        p, tile, rows = self.plan, self.plan.forward, self.images * self.directions
        sums = workspace(p.chunks * rows * self.channels)
        ends = workspace(p.chunks * rows * self.states * self.channels)
        pair = 2 if self.merged else 1
        backwards = self.walked.backwards
        if adjoint:
            backwards ^= (1 << self.directions) - 1
        for state0 in range(0, self.states, tile.states):
            forward.aggregates[(rows // pair * p.chunks * tile.programs(self.channels),)](
                u, self.steps, self.weight, self.bias, self.A, B, sums, ends,
                *_strides(u), *_strides(self.steps), *_strides(B),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                backwards, *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, u, u, B), PAIR=pair, ADJOINT=adjoint,
            )  # fmt: skip
        blocks = -(-self.channels // _CARRY_BLOCK)
        forward.carry[(rows * self.states * blocks,)](
            sums, ends, self.A, rows, p.chunks, self.channels, self.states, self.directions, backwards,
            BC=_CARRY_BLOCK, num_warps=1,
        )  # fmt: skip
        return ends

    def _constants(self, tile: Tile, u: Tensor, other: Tensor, B: Tensor | None = None) -> dict[str, Any]:
        """What kernels are compiled for that read ``u``, steps and B, and read or write ``other``."""
        return {
            "U_BYTES": _bytes(u),
            "S_BYTES": _bytes(self.steps),
            "B_BYTES": _bytes(self.B if B is None else B),
            "R": self.rank,
            "RP": max(_LEAST_RANK, 1 << (self.rank - 1).bit_length()) if self.rank else _LEAST_RANK,
            "SPLIT": (1 if 2 * self.rank > _LEAST_RANK else 2) if self.steps.element_size() == 2 else 0,
            "NB": tile.states,
            "BT": tile.rows,
            "BC": tile.block,
            "NC": tile.blocks,
            "SOFTPLUS": self.softplus,
            "AHEAD": tile.ahead,
            "BIAS": self.bias is not None,
            "DENSE": u.stride(3) == 1 and other.stride(3) == 1,
            "TIGHT": min(_packed(self.B), _packed(self.C)),
            "EDGE": self.channels % (tile.block * tile.blocks) != 0,
            "MASKED": self.states % tile.states != 0,
            "num_warps": 1,
            "num_stages": 1,
        }


def _strides(t: Tensor) -> tuple[int, int, int]:
    """From image to image, direction to direction, channel (or state) to channel."""
    image, direction, _, channel = t.stride()
    return image, direction, channel


def _bytes(t: Tensor) -> int:
    """From place to place."""
    return t.stride(2) * t.element_size()


def _packed(t: Tensor) -> int:
    """How many states of a place, at most 4, may be loaded at once; 0 where they are apart."""
    if t.stride(3) != 1:
        return 0
    numbers = [_offset(t), *t.stride()[:3]]
    return next(size for size in (4, 2, 1) if all(number % size == 0 for number in numbers))


def _offset(t: Tensor) -> int:
    """Elements from an address that every alignment divides."""
    return int(t.storage_offset()) if t.is_meta else t.data_ptr() // t.element_size()
