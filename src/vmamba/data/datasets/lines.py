"""Volumes that need long range along each axis: what a voxel must say stands at the far end of its lines.

The three channels belong to the axes. In each, the first planes across its axis hold a random mark, -1 or 1, for every
line along the axis, and all other voxels are noise around 0. A voxel's three labels are the marks at the beginnings
of its three lines. As every line has a mark of its own, nothing but that very line tells a voxel its label: neither its
neighbours do, nor the lines of another axis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Places along each axis.
SIDE = 14
#: Voxels are asked from this distance on.
FAR = 11
#: Planes that hold marks.
THICK = 4
#: Standard deviation of the noise.
NOISE = 0.04


def make_lines(count: int, seed: int, side: int = SIDE) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``count`` volumes ``(count, 3, side, side, side)`` and their labels in the same shape, 1 for a positive mark.

    Both are the same for the same arguments. See `asked` for the voxels whose labels count.
    """
    random = np.random.RandomState(seed)
    volumes = NOISE * random.standard_normal((count, 3, side, side, side))
    labels = np.empty((count, 3, side, side, side), np.float32)
    for axis in range(3):
        marks = random.randint(0, 2, (count, side, side))
        begin: list[slice | int] = [slice(None), axis, slice(None), slice(None), slice(None)]
        begin[2 + axis] = slice(0, THICK)
        volumes[tuple(begin)] = np.expand_dims(2 * marks - 1, 1 + axis)
        labels[:, axis] = np.expand_dims(marks, 1 + axis)
    return volumes.astype(np.float32), labels


def asked(side: int = SIDE, far: int = FAR) -> NDArray[np.bool_]:
    """Of each axis's labels those that count, ``(3, side, side, side)``: from ``far`` places down the line on."""
    beyond = np.arange(side) >= far
    return np.stack([np.broadcast_to(beyond.reshape(shape), (side,) * 3) for shape in ((-1, 1, 1), (-1, 1), (-1,))])
