"""How a scan is cut into programs: fixed by its sizes and the number of multiprocessors, never by timing.

So a configuration's results are the same bits in every run and every process, a CUDA graph can be captured after one
call, and nothing is tried out on the first batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from vmamba.errors import BackendError

# Measured on an H200 with VMamba-T's maps. Programs have one warp each; so many hide most of what each waits for. Where
# there are as many walks these are not cut, since aggregates cost half as much as outputs. Where they are cut, then to
# short chunks: the second direction of a pair finds in the cache what the first one touched.
_PROGRAMS_PER_SM = 8
_PLACES = 256
_LEAST_PLACES = 49
_ROWS = 8  # of a tile: as few as matrix products take
_INT32 = 2**31


class Walk(NamedTuple):
    """The way of a direction through the pixels: place t is pixel ``base + t·stride + (t // inner)·jump``.

    The division is a product: ``t // inner = (t·mul >> 32) >> shift`` for every t below 2³¹.
    """

    base: int
    mul: int
    shift: int
    stride: int
    jump: int


def walk(reading: int, height: int, width: int) -> Walk:
    """The walk of a reading (see `vmamba.scan.orders.readings_of`) over a map of this size."""
    by_column, flip_h, flip_w = reading & 1, reading & 2, reading & 4
    base = (height - 1) * width * bool(flip_h) + (width - 1) * bool(flip_w)
    down, right = (-width if flip_h else width), (-1 if flip_w else 1)
    inner, stride, outer = (height, down, right) if by_column else (width, right, down)
    if outer == stride * inner or inner == height * width:  # one line
        return Walk(base, 0, 0, stride, 0)
    if inner == 1:
        return Walk(base, 0, 0, outer, 0)
    bits = (inner - 1).bit_length()
    mul = 2 ** (31 + bits) // inner + 1
    return Walk(base, mul - 2**32 if mul >= _INT32 else mul, bits - 1, stride, outer - stride * inner)


class Pairs(NamedTuple):
    """Four directions as two pairs that walk the same way, 0 with 2 and 1 with 3, the second forth or back."""

    walks: tuple[Walk, Walk]
    backwards: int  # bit k: direction k runs its pair's walk backwards


def pairs(readings: Sequence[int], height: int, width: int) -> Pairs:
    """Pair the directions of a scan mode.

    Raises:
        BackendError: directions 0 and 2, or 1 and 3, are neither the same nor each other's reverse.
    """
    backwards = 0
    for k in (2, 3):
        turned = readings[k] ^ readings[k - 2]
        if turned not in (0, 6):
            raise BackendError(
                f"the GPU kernels pair direction {k} with {k - 2}, which must be the same or its reverse, given "
                f'readings {tuple(readings)}; use backend="torch"'
            )
        backwards |= (turned == 6) << k
    return Pairs((walk(readings[0], height, width), walk(readings[1], height, width)), backwards)


class Tile(NamedTuple):
    """How a kernel cuts channels, places and states.

    Attributes:
        lanes: channels of one lane (V); a block has ``32·V``.
        rows: places of a tile (BT), of which a lane holds all.
        states: states that one pass computes (NB).
        registers: of a lane, at most; 0 for as many as there are (255). With fewer, more programs are on a
            multiprocessor at once, whose turns hide that each waits for its own chain of operations.
    """

    lanes: int
    rows: int
    states: int
    registers: int = 0

    @property
    def block(self) -> int:
        """Channels of a tile (BC)."""
        return 32 * self.lanes

    def programs(self, channels: int) -> int:
        """Programs that share the channels of a chunk."""
        return -(-channels // self.block)


class Plan(NamedTuple):
    """The constants of a call's kernels.

    Attributes:
        forward, backward: tiles of the two ways.
        group: places between two states kept for backward.
        chunk, chunks: places of a chunk, and how many there are (S).
    """

    forward: Tile
    backward: Tile
    group: int
    chunk: int
    chunks: int


def group_of(states: int) -> int:
    """Places between two states kept for backward: a tile's for one state, more where states are many."""
    return _ROWS if states == 1 else 64


@functools.lru_cache(1024)
def plan(images: int, directions: int, length: int, channels: int, states: int, rank: int, processors: int) -> Plan:
    """Cut ``images × directions`` walks over ``length`` places of ``channels`` into programs.

    Args:
        directions: that programs of one launch work on side by side.
        processors: multiprocessors of the device.
    """
    padded = 1 << (states - 1).bit_length()
    forward = _forward_tile(channels, rank, min(16, padded))
    backward = Tile(1, _ROWS, min(4, padded))  # it holds many more numbers of each place
    group = group_of(states)
    tasks = images * directions * forward.programs(channels)
    chunks = 1
    if tasks < _PROGRAMS_PER_SM * processors:
        while length >= 2 * chunks * _LEAST_PLACES and (
            tasks * chunks < _PROGRAMS_PER_SM * processors or length > _PLACES * chunks
        ):
            chunks *= 2
    places = -(-length // chunks)
    chunk = -(-places // group) * group
    return Plan(forward, backward, group, chunk, -(-length // chunk))


def _forward_tile(channels: int, rank: int, states: int) -> Tile:
    """Two channels a lane share what is done once a place; a larger weight, and states, leave no registers for that."""
    if states > 1:
        return Tile(2 if channels % 64 == 0 and rank <= 32 else 1, _ROWS, states)
    if rank > 32:
        return Tile(1, _ROWS, 1)
    if rank > 12:
        return Tile(1, _ROWS, 1, 168)
    if channels % 64:
        return Tile(1, _ROWS, 1, 128)
    return Tile(2, _ROWS, 1, 168 if rank else 0)


def rows_of_table() -> dict[str, str]:
    """The fixed configurations, for people."""
    rows = {"1 state": plan(1, 1, 3136, 64, 1, 4, 1), "16 states": plan(1, 1, 3136, 64, 16, 4, 1)}
    return {
        name: f"{_words(row.forward)}, backward {_words(row.backward)}, states kept every {row.group}"
        for name, row in rows.items()
    } | {"chunks": f"of at most {_PLACES} places where there are fewer than {_PROGRAMS_PER_SM} walks a multiprocessor"}


def _words(tile: Tile) -> str:
    return f"{tile.rows} places × {tile.block} channels × {tile.states} states"
