"""One scan on a GPU, for both operators: its tensors as the kernels take them, and the launches both ways.

What a launch is told besides its tensors depends on their sizes and strides only; to find it takes Python longer than
a small map takes the GPU. So that comes first, as a `Forward` or a `Backward`, which callers can keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vmamba.kernels.triton import processors
from vmamba.kernels.triton.jit import Bound, capped
from vmamba.kernels.triton.scans import backward, forward
from vmamba.kernels.triton.scans.plan import Pairs, Plan, Tile, plan

_CARRY_BLOCK = 128
# Products need sums of so many terms at least.
_LEAST_SUM = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16
_LEAST_RANK = 16
_FLOAT = 4  # bytes


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
        of_weight, of_bias, of_D, of_A = sums.split_with_sizes([self.rank, 1, 1, self.states], 1)
        if weight is not None:
            weight.copy_(of_weight.transpose(1, 2))
        if bias is not None:
            bias.view(of_bias.shape).copy_(of_bias)
        if D is not None:
            D.view(of_D.shape).copy_(of_D)
        if A is not None:
            of_A = of_A.transpose(1, 2)
            A.view(of_A.shape).copy_(of_A)


class Inputs(NamedTuple):
    """The inputs of a scan over the places of k directions.

    Attributes:
        u: ``(b, k, l, d)``; directions that share their pixels have stride 0 between them.
        steps: the low-rank steps ``(b, k, l, r)``, or the steps themselves ``(b, k, l, d)`` where there is no weight.
        weight: step projection ``(k, d, r)`` or None.
        bias: of the steps, ``(k·d)``, or None.
        A: ``(k·d, n)``.
        B, C: ``(b, k, l, n)``.
        D: ``(k·d)`` or None.
    """

    u: Tensor
    steps: Tensor
    weight: Tensor | None
    bias: Tensor | None
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None

    def dense(self, directions: int) -> Inputs:
        """With parameters as the kernels read them: A's states ``(k, n, d)``."""
        A, states = self.A, self.A.shape[1]
        if states > 1:
            A = A.view(directions, -1, states).transpose(1, 2)  # channels beside each other
        weight, bias, D = (None if t is None else t.contiguous() for t in (self.weight, self.bias, self.D))
        return Inputs(self.u, self.steps, weight, bias, A.contiguous(), self.B, self.C, D)


def plan_of(u: Tensor, A: Tensor, directions: int, rank: int) -> Plan:
    """The plan of a scan.

    Args:
        u: ``(b, k·d, l)``, or ``(b, h, w, d)`` where the directions share it.
        A: ``(k·d, n)``.
        directions: that programs work on side by side: k, or 1 where they share u.
        rank: r, or 0 without a projection.
    """
    images, states = u.shape[0], A.shape[1]
    if u.dim() == 3:
        length, channels = u.shape[2], u.shape[1] // directions
    else:
        length, channels = u.shape[1] * u.shape[2], u.shape[3]
    return plan(images, directions, length, channels, states, rank, processors(u.device))


#: Makes float32 memory of so many elements.
Workspace = Callable[[int], Tensor]


class Carry(NamedTuple):
    """What computes the states, or adjoint states, that chunks begin with: ``(chunks, b, k, n, d)``.

    Attributes:
        sums, ends: elements of the memory that it takes: of the steps' sums, and of the result.
        aggregates, carry: the launches.
    """

    sums: int
    ends: int
    aggregates: Sequence[Bound]
    carry: Bound

    def __call__(self, u: Tensor, t: Inputs, B: Tensor, first: Tensor | None, workspace: Workspace) -> Tensor:
        """Return them, beginning with ``first`` or zero. On the way back u is the gradient of y, and B is C."""
        sums, ends = workspace(self.sums), workspace(self.ends)
        for launch in self.aggregates:
            launch(u, t.steps, t.weight, t.bias, t.A, B, sums, ends)
        self.carry(sums, ends, t.A, ends if first is None else first)
        return ends


class Forward(NamedTuple):
    """A forward pass but for its tensors: see `Scan.forward`."""

    directions: int
    carry: Carry | None
    outputs: Sequence[Bound]
    detail: str

    def __call__(
        self,
        inputs: Inputs,
        y: Tensor,
        saved: Tensor | None,
        workspace: Workspace,
        first: Tensor | None = None,
        last: Tensor | None = None,
    ) -> str:
        """Fill ``y (b, k, l, d)``, float32, and ``saved``; return what ran.

        ``first`` and ``last (b, k, n, d)``, contiguous: the states that walks begin with, and memory for those behind
        them; given if `Scan.forward` was told so.
        """
        t = inputs.dense(self.directions)
        with torch.cuda.device_of(t.u):  # Triton launches on the current device
            start = first if self.carry is None else self.carry(t.u, t, t.B, first, workspace)
            # What a kernel does not look at is y.
            start, kept, end = (y if one is None else one for one in (start, saved, last))
            for launch in self.outputs:
                launch(t.u, t.steps, t.weight, t.bias, t.A, t.D, t.B, t.C, y, start, kept, end)
        return self.detail


class Backward(NamedTuple):
    """A backward pass but for its tensors: see `Scan.backward`.

    Attributes:
        columns, parts: shapes of what it returns.
        scratch: elements of memory that it takes besides.
        rank, states: r and n.
    """

    directions: int
    carry: Carry | None
    gradients: Sequence[Bound]
    columns: tuple[int, ...]
    parts: tuple[int, ...]
    scratch: int
    rank: int
    states: int

    def __call__(
        self,
        inputs: Inputs,
        dy: Tensor,
        saved: Tensor,
        du: Tensor,
        ds: Tensor | None,
        workspace: Workspace,
        dlast: Tensor | None = None,
        dfirst: Tensor | None = None,
    ) -> Gradients:
        """Fill ``du (b, k, l, d)`` and, without a projection, ``ds`` alike; return the parts of the others.

        Args:
            inputs: as forward had them.
            dy: ``(b, k, l, d)``, float32.
            saved: what forward filled.
            du, ds: memory for gradients.
            workspace: makes memory for this call.
            dlast, dfirst: ``(b, k, n, d)``, contiguous: gradients of the states behind walks, and memory for those of
                the states that walks begin with; both given if `Scan.backward` was told so.
        """
        t = inputs.dense(self.directions)
        with torch.cuda.device_of(t.u):
            start = dlast if self.carry is None else self.carry(dy, t, t.C, dlast, workspace)
            start, of_first = (dy if one is None else one for one in (start, dfirst))
            columns = workspace(math.prod(self.columns)).view(self.columns)
            parts = workspace(math.prod(self.parts)).view(self.parts)
            scratch = workspace(self.scratch) if self.scratch else parts
            of_steps = t.steps if ds is None else ds
            for launch in self.gradients:
                launch(
                    t.u, t.steps, t.weight, t.bias, t.A, t.D, t.B, t.C, dy, saved, start, du,
                    of_steps, columns, parts, scratch, of_first,
                )  # fmt: skip
        return Gradients(columns, parts, self.rank, self.states)


class Scan:
    """How a scan is launched, which the sizes, strides and alignments of its tensors decide.

    What `forward` and `backward` return takes any tensors of these dtypes that lie in memory as those given here do.

    Args:
        inputs: in their layout; of meta tensors the storage's offset tells the alignment.
        walked: the directions' ways.
        softplus: whether steps go through softplus.
        plan: how it is cut, see `plan_of`.
    """

    def __init__(self, inputs: Inputs, walked: Pairs, softplus: bool, plan: Plan) -> None:
        self.u, self.steps, self.weight, self.bias, A, self.B, self.C, self.D = inputs
        self.images, self.directions, self.length, self.channels = self.u.shape
        self.states = A.shape[1]
        self.rank = 0 if self.weight is None else self.weight.shape[2]
        self.merged = self.u.stride(1) == 0  # the directions read the same pixels and add up
        self.walked, self.softplus, self.plan = walked, softplus, plan

    def forward(self, y: Tensor, *, save: bool, first: bool = False, last: bool = False) -> Forward:
        """What fills a tensor like ``y (b, k, l, d)``, and the states that backward starts from where they are kept.

        ``first``: walks begin with given states. ``last``: the states behind walks are written.
        """
        p, tile = self.plan, self.plan.forward
        outputs = [
            forward.outputs.bound(
                self.images * side * p.chunks * tile.programs(self.channels),
                *_strides(self.u), *_strides(self.steps), *_strides(self.B), *_strides(self.C), *_strides(y),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                dir0, side, self.walked.backwards, state0 + dir0 * self.merged,
                *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, self.u, y), C_BYTES=_bytes(self.C), Y_BYTES=_bytes(y), GROUP=p.group,
                PAIR=2 if self.merged else 1, SAVE=save, SKIP=self.D is not None, CB=self._beside(),
                FIRST=first, LAST=last,
            )
            for state0, dir0, side in self._passes(tile)
        ]  # fmt: skip
        carry = self._carry(self.u, self.B, adjoint=False, first=first) if p.chunks > 1 else None
        detail = f"triton, {p.chunks} chunks of {p.chunk}, {tile.block} channels"
        return Forward(self.directions, carry, outputs, detail)

    def _passes(self, tile: Tile) -> Iterator[tuple[int, int, int]]:
        """First state, first direction, and directions side by side of each launch that adds to the same memory."""
        for state0 in range(0, self.states, tile.states):
            if self.merged:
                yield state0, 0, 1
                yield state0, 1, 1
            else:
                yield state0, 0, self.directions

    def backward(self, dy: Tensor, du: Tensor, ds: Tensor | None, *, states: bool = False) -> Backward:
        """What fills tensors like ``du (b, k, l, d)`` and, without a projection, ``ds`` from one like ``dy``.

        ``states``: the states behind walks have gradients, and those that walks begin with get theirs.
        """
        p, tile = self.plan, self.plan.backward
        width, blocks = self.rank + 2 * self.states, tile.programs(self.channels)
        columns = (blocks, self.images, self.length, self.directions, width)
        parts = (self.images * p.chunks, self.directions, self.rank + 2 + self.states, self.channels)
        side = 1 if self.merged else self.directions
        programs = self.images * side * p.chunks * blocks
        tiles = p.group // tile.rows
        of_steps = self.steps if ds is None else ds
        gradients = [
            backward.gradients.bound(
                programs,
                *_strides(self.u), *_strides(self.steps), *_strides(self.B), *_strides(self.C), *_strides(dy),
                *_strides(du), *_strides(of_steps),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                dir0, side, self.walked.backwards, state0 + dir0 * self.merged,
                *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, self.u, du), C_BYTES=_bytes(self.C), DY_BYTES=_bytes(dy), DU_BYTES=_bytes(du),
                DS_BYTES=_bytes(of_steps), COLUMN_BYTES=self.directions * width * _FLOAT,
                GROUP=p.group, PAIR=2 if self.merged else 1, SKIP=self.D is not None,
                EXACT=self.steps.element_size() > 2, SHORT=tile.rows >= _LEAST_SUM, STATES=states,
            )
            for state0, dir0, side in self._passes(tile)
        ]  # fmt: skip
        scratch = programs * tiles * tile.states * tile.block if tiles > 1 else 0
        carry = self._carry(dy, self.C, adjoint=True, first=states) if p.chunks > 1 else None
        return Backward(self.directions, carry, gradients, columns, parts, scratch, self.rank, self.states)

    def _beside(self) -> int:
        """How many numbers C stands behind B where both are parts of one tensor, or 0."""
        apart = int(self.C.storage_offset() - self.B.storage_offset())
        same = self.B.untyped_storage()._cdata == self.C.untyped_storage()._cdata
        return apart if same and self.B.stride() == self.C.stride() and self.states == 1 and 0 < apart < 16 else 0

    def _carry(self, u: Tensor, B: Tensor, *, adjoint: bool, first: bool) -> Carry:
        p, tile, rows = self.plan, self.plan.forward, self.images * self.directions
        pair = 2 if self.merged else 1
        backwards = self.walked.backwards
        if adjoint:
            backwards ^= (1 << self.directions) - 1
        aggregates = [
            forward.aggregates.bound(
                rows // pair * p.chunks * tile.programs(self.channels),
                *_strides(u), *_strides(self.steps), *_strides(B),
                self.images, self.length, p.chunk, p.chunks, self.channels, self.states, state0, self.directions,
                backwards, *self.walked.walks[0], *self.walked.walks[1],
                **self._constants(tile, u, u, B), PAIR=pair, ADJOINT=adjoint,
            )
            for state0 in range(0, self.states, tile.states)
        ]  # fmt: skip
        blocks = -(-self.channels // _CARRY_BLOCK)
        carry = forward.carry.bound(
            rows * self.states * blocks, rows, p.chunks, self.channels, self.states, self.directions, backwards,
            BC=_CARRY_BLOCK, FIRST=first, num_warps=1,
        )  # fmt: skip
        sums = p.chunks * rows * self.channels
        return Carry(sums, sums * self.states, aggregates, carry)

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
            "SOFTPLUS": self.softplus,
            "BIAS": self.bias is not None,
            "DENSE": u.stride(3) == 1 and other.stride(3) == 1,
            "TIGHT": min(_packed(self.B), _packed(self.C)),
            "EDGE": self.channels % tile.block != 0,
            "MASKED": self.states % tile.states != 0,
            "num_warps": 1,
            "num_stages": 1,
            **capped(tile.registers),
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
    numbers = [offset(t), *t.stride()[:3]]
    return next(size for size in (4, 2, 1) if all(number % size == 0 for number in numbers))


def offset(t: Tensor) -> int:
    """Elements from an address that every alignment divides."""
    return int(t.storage_offset()) if t.is_meta else t.data_ptr() // t.element_size()
