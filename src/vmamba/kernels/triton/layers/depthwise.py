"""The depthwise 3×3 convolution with SiLU on a GPU, channels-last, both ways: how a call is cut, and its launches.

Nothing depends on timing, and sums over places are partial sums that are added in order: the same call gives the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from vmamba.kernels.triton import processors
from vmamba.kernels.triton.jit import capped
from vmamba.kernels.triton.layers.depthwise_kernels import convolve, gradients
from vmamba.kernels.triton.layers.sums import add_parts

TAPS = 9
_BLOCK = 32  # channels of a program: 64 bytes of a pixel in 16 bits; more of them would leave fewer columns to share


class Way(NamedTuple):
    """A configuration of one of the two kernels.

    Attributes:
        together: columns of a lane.
        lanes: channels that a lane moves at once, at most.
        registers: of a lane, at most; 0 leaves it to the compiler, which takes more than it must, for fewer warps.
        per_processor: programs of a multiprocessor that are wanted, of one warp each.
        least_rows: of a strip, which reads more rows than it has.
    """

    together: int
    lanes: int
    registers: int
    per_processor: int
    least_rows: int


#: Of these a map takes what leaves the fewest columns of a lane empty, or else the first.
FORWARD = (Way(4, 4, 0, 32, 7), Way(7, 2, 0, 32, 7))
# With 168 registers there are 12 warps: with seven columns, which spill some, one wave of them is VMamba-T's maps of
# 14 and 7 columns of 128 images on 132 multiprocessors.
BACKWARD = (Way(4, 2, 168, 12, 28), Way(7, 2, 168, 12, 14))
_WARPS = 1  # more of them would wait for each other


class _Cut(NamedTuple):
    """How a call is cut into programs: fixed by its sizes and the number of multiprocessors."""

    way: Way
    lanes: int
    rows: int
    strips: int
    tiles: int  # of columns, of a program
    groups: int  # of tiles

    def constants(self, x: Tensor) -> dict[str, int]:
        width, channels = x.shape[2:]
        together = self.way.together
        return {
            "P": together, "EVEN": width % together == 0, "BESIDE": int(width > together),
            "BP": _columns_of(self.lanes), "BC": _BLOCK, "V": self.lanes, "EDGE": channels % _BLOCK != 0,
            "num_warps": _WARPS, "num_stages": 1, **capped(self.way.registers),
        }  # fmt: skip


def _columns_of(lanes: int) -> int:
    """Groups of columns of a program: every lane has one, of as many channels as it moves at once."""
    return max(1, _WARPS * 32 * lanes // _BLOCK)


def _cut(ways: Sequence[Way], widest: int, *maps: Tensor, several: bool = False) -> _Cut:
    images, height, width, channels = maps[0].shape
    way = min(ways, key=lambda one: -(-width // one.together) * one.together)
    lanes = _lanes(min(way.lanes, widest), *maps)
    wanted = way.per_processor * processors(maps[0].device)
    blocks, tiles = -(-channels // _BLOCK), -(-images * -(-width // way.together) // _columns_of(lanes))
    strips = min(max(1, height // way.least_rows), -(-wanted // (blocks * tiles)))
    rows = -(-height // strips)
    strips = -(-height // rows)
    # Few parts to add at the end, while there are programs enough.
    per_program = max(1, blocks * tiles * strips // wanted) if several else 1
    return _Cut(way, lanes, rows, strips, per_program, -(-tiles // per_program))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, y: Tensor) -> None:
    """Fill ``y``; not for empty maps.

    Args:
        x: ``(b, h, w, c)``; float32, bfloat16 or float16.
        weight: ``(c, 1, 3, 3)``, in any of these dtypes.
        bias: ``(c)``, as weight, or None.
        silu: whether SiLU follows.
        y: ``(b, h, w, c)``, contiguous, in the dtype of ``x``. Sums are float32.
    """
    x = _dense(x)
    images, height, width, channels = x.shape
    cut = _cut(FORWARD, 16 // x.element_size(), x, y)
    convolve[(cut.groups * cut.strips * -(-channels // _BLOCK),)](
        x, weight.contiguous(), bias if bias is None else bias.contiguous(), y, *_strides(x), *_strides(y),
        images, height, width, channels, cut.rows, cut.strips,
        X_PIXEL=_pixel(x), Y_PIXEL=_pixel(y), BIAS=bias is not None, SILU=silu, **cut.constants(x),
    )  # fmt: skip


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    dy: Tensor,
    dx: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    workspace: Callable[[int], Tensor],
) -> None:
    """Fill the gradients that are given; not for empty maps.

    Args:
        x, weight, bias, silu: as of `forward`.
        dy: ``(b, h, w, c)``.
        dx: ``(b, h, w, c)``, contiguous, in the dtype of ``x``.
        d_weight, d_bias: as weight and bias, contiguous, in any of these dtypes.
        workspace: makes float32 memory for this call.
    """
    x, dy = _dense(x), _dense(dy)
    images, height, width, channels = x.shape
    into = dy if dx is None else dx
    cut, sums = _cut(BACKWARD, 4, x, dy, into, several=True), d_weight is not None or d_bias is not None
    count, numbers = cut.groups * cut.strips, (TAPS + 1) * channels
    parts = workspace(count * numbers) if sums else None
    gradients[(count * -(-channels // _BLOCK),)](
        x, weight.contiguous(), bias if bias is None else bias.contiguous(), dy, into, dy if parts is None else parts,
        *_strides(x), *_strides(dy), *_strides(into),
        images, height, width, channels, cut.rows, cut.strips, cut.tiles,
        X_PIXEL=_pixel(x), DY_PIXEL=_pixel(dy), DX_PIXEL=_pixel(into), BIAS=bias is not None, SILU=silu, SUMS=sums,
        DX=dx is not None, **cut.constants(x),
    )  # fmt: skip
    if parts is not None:
        add_parts(parts, count, channels, TAPS, d_weight, d_bias)


def _dense(t: Tensor) -> Tensor:
    """Channels beside each other, and a distance between pixels that does not depend on the size of the map.

    Kernels are compiled for that distance; the half of a map that a chunk along channels gives is taken as it is.
    """
    channels = t.shape[3]
    return t if t.stride(3) == 1 and _pixel(t) in (channels, 2 * channels) else t.contiguous()


def _pixel(t: Tensor) -> int:
    return t.stride(2) if t.shape[2] > 1 else t.shape[3]


def _strides(t: Tensor) -> tuple[int, int]:
    return t.stride(0), t.stride(1)


def _lanes(limit: int, *tensors: Tensor) -> int:
    """How many channels, at most ``limit``, a lane can move at once."""
    numbers = [tensors[0].shape[3]]
    for t in tensors:
        strides = (stride for stride, size in zip(t.stride()[:3], t.shape[:3], strict=True) if size > 1)
        numbers += [t.data_ptr() // t.element_size(), *strides]
    return next(n for n in (8, 4, 2, 1) if n <= limit and all(number % n == 0 for number in numbers))
