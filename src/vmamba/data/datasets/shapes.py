"""Shapes: a generated data set for segmentation and detection, squares, discs and triangles on textured noise.

Nothing but the outline tells a shape's class: colours, sizes, places and turns (15 degrees at most) are drawn alike for
all three, and shapes lie upon each other. A sample depends on its part, the seed and its index alone, so that any can
be made by itself, by any process. Masks are drawn in integers and all noise in exact fractions: every machine makes the
same pixels.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: What a pixel of the semantic mask may show; an instance's label is an index into these, from 1 on.
CLASSES = ("background", "square", "disc", "triangle")
#: Side of an image, pixels.
SIZE = 256
#: Shapes in an image, at most.
MOST = 6
#: Samples in each part. Parts draw from streams of their own, whatever the seed.
SIZES = {"train": 2048, "val": 64, "test": 128}
#: Bytes of images and masks, 600 MiB, that a part keeps: all of its samples at the usual size.
KEPT = 600 << 20

#: Of a shape's radius, as shares of the image's side.
_RADII = (1 / 16, 1 / 5)
#: A shape keeps this share of its pixels in sight, at least.
_VISIBLE = 0.4
#: The background is grey, more or less: its channels' means differ by twice this at most.
_TINT = 12
#: Smallest difference between two channels of a shape's colour.
_SATURATION = 80
#: cos and sin of 120°, times 30, near enough for a triangle with corners on a grid.
_THIRD = (-15, 26)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShapesSample:
    """One generated image with everything that is known of it; n is the number of shapes, 1 to 6.

    Attributes:
        image: ``(size, size, 3)``, uint8, RGB.
        semantic: ``(size, size)``, uint8, an index into `CLASSES`.
        masks: ``(n, size, size)``, bool: what is in sight of each shape, from the one at the back to the one in front.
        boxes: ``(n, 4)``, int64: x1, y1, x2, y2 around each mask, in pixels; x2 and y2 are the first beyond it.
        labels: ``(n,)``, int64, an index into `CLASSES`, from 1 on.
    """

    image: npt.NDArray[np.uint8]
    semantic: npt.NDArray[np.uint8]
    masks: Mask
    boxes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def make_sample(part: str, seed: int, index: int, size: int = SIZE) -> ShapesSample:
    """Generate one sample, the same for the same arguments.

    Args:
        part: train, val or test.
        seed: 0 or more.
        index: 0 or more.
        size: side of the image, pixels, 32 or more.
    """
    # RandomState's stream is frozen by numpy's policy; Generator's is not.
    stream = np.random.SeedSequence((tuple(SIZES).index(part), seed, index))
    random = np.random.RandomState(np.random.MT19937(stream))
    base = random.randint(56, 200) + random.randint(-_TINT, _TINT + 1, 3)
    image = _texture(random, size) + base.astype(np.int16)[:, None, None]
    semantic = np.zeros((size, size), np.uint8)
    whole: list[int] = []
    in_sight: list[int] = []
    seen: list[Mask] = []
    labels: list[int] = []
    for _ in range(random.randint(1, MOST + 1)):
        label = random.randint(1, len(CLASSES))
        window, mask = _outline(random, label, size)
        colour = _colour(random).astype(np.int16)[:, None, None]
        grain = random.randint(-14, 15, mask.shape).astype(np.int16)
        left = [now - int(np.count_nonzero(old[window] & mask)) for now, old in zip(in_sight, seen, strict=True)]
        if any(now < _VISIBLE * full for now, full in zip(left, whole, strict=True)):
            continue  # it would hide another
        np.copyto(image[:, window[0], window[1]], colour + grain, where=mask)
        np.copyto(semantic[window], np.uint8(label), where=mask)
        for old in seen:
            old[window] &= ~mask
        seen.append(np.zeros((size, size), bool))
        seen[-1][window] = mask
        whole.append(int(np.count_nonzero(mask)))
        in_sight = [*left, whole[-1]]
        labels.append(label)
    pixels = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    masks = np.stack(seen)
    return ShapesSample(pixels, semantic, masks, boxes_of(masks), np.array(labels, np.int64))


def boxes_of(masks: Mask) -> npt.NDArray[np.int64]:
    """The boxes ``(n, 4)`` around ``masks (n, h, w)``, none of them empty: x1, y1, x2, y2, the latter two exclusive."""
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


@dataclass(frozen=True)
class _Kept:
    """A sample in little memory: masks are disjoint, so that one map of the shapes' numbers, from 1 on, holds all."""

    image: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sample: ShapesSample) -> _Kept:
        numbers = np.zeros_like(sample.semantic)
        for number, mask in enumerate(sample.masks, 1):
            numbers[mask] = number
        return cls(sample.image, numbers, sample.boxes, sample.labels)

    def sample(self) -> ShapesSample:
        """As it was made, in arrays of its own."""
        semantic = np.append(0, self.labels).astype(np.uint8)[self.numbers]
        masks = self.numbers == np.arange(1, len(self.labels) + 1, dtype=np.uint8)[:, None, None]
        return ShapesSample(self.image.copy(), semantic, masks, self.boxes.copy(), self.labels.copy())


class Shapes:
    """The samples of one part, made when asked for, and kept up to `KEPT` bytes: an epoch comes to each again.

    A loader's worker keeps none: all of them together would keep each sample several times.

    Args:
        part: train, val or test.
        seed: of the whole set.
        count: how many; by default `SIZES`.
        size: side of an image, pixels.
    """

    def __init__(self, part: str, seed: int = 0, count: int | None = None, size: int = SIZE) -> None:
        self.part = part
        self.seed = seed
        self.count = SIZES[part] if count is None else count
        self.size = size
        self._kept: dict[int, _Kept] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ShapesSample:
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        if index not in self._kept:
            sample = make_sample(self.part, self.seed, index, self.size)
            # Four bytes a pixel: three of the image, and the number of what is in sight.
            if (len(self._kept) + 1) * 4 * self.size**2 > KEPT or multiprocessing.parent_process() is not None:
                return sample
            self._kept[index] = _Kept.of(sample)
        return self._kept[index].sample()

    def name(self, index: int) -> str:
        """Part and place."""
        return f"{self.part}-{index:04d}"

    def fingerprint(self) -> str:
        """A hash of the first sample's pixels, and of what tells the others."""
        digest = hashlib.sha256(f"{self.part} {self.seed} {self.count} {self.size}".encode())
        digest.update(self[0].image.tobytes())
        return digest.hexdigest()[:16]


def _texture(random: np.random.RandomState, size: int) -> npt.NDArray[np.int16]:
    """Noise of three grains, ``(size, size)``, around 0: clouds, blotches, pixels."""
    noise = random.randint(-10, 11, (size, size)).astype(np.float32)
    for step, strength in ((size // 4, 28), (size // 16, 16)):
        noise += _enlarged(random.randint(-strength, strength + 1, (size // step + 2,) * 2), step)[:size, :size]
    return np.floor(noise, out=noise).astype(np.int16)


def _enlarged(grid: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    """``grid`` with ``step`` times as many places, bilinear between its own."""
    weights = (np.arange(step, dtype=np.float32) / np.float32(step))[None, :, None]
    values = grid.astype(np.float32)
    for _ in range(2):
        between = values[:-1, None] * (1 - weights) + values[1:, None] * weights
        values = between.reshape(-1, values.shape[1]).T
    return values


def _colour(random: np.random.RandomState) -> npt.NDArray[np.int64]:
    while True:
        colour = random.randint(0, 256, 3)
        if np.ptp(colour) >= _SATURATION:
            return colour


def _outline(random: np.random.RandomState, label: int, size: int) -> tuple[tuple[slice, slice], Mask]:
    """A shape: a part of the image that holds it, and its pixels there. Its centre lies in the image."""
    least, most = (round(share * size) for share in _RADII)
    radius = random.randint(least, most + 1)
    margin = radius // 2
    centre = random.randint(margin, size - margin, 2)
    # A vector from the centre upwards, of about the radius' length, turned by up to 15 degrees: a square's normal, a
    # triangle's corner.
    other = random.randint(-radius // 4, radius // 4 + 1)
    turn = -math.isqrt(radius**2 - other**2)
    reach = 4 * radius // 3 + 1
    rows, columns = (slice(max(0, c - reach), min(size, c + reach + 1)) for c in centre.tolist())
    y, x = np.ogrid[rows, columns]
    return (rows, columns), _covers(CLASSES[label], radius, (turn, other), y - centre[0], x - centre[1])


def _covers(kind: str, radius: int, corner: tuple[int, int], y: Any, x: Any) -> Any:
    """Where ``y (h, 1)`` and ``x (1, w)``, counted from its centre, lie in a shape that points to ``corner``."""
    turn, other = corner
    if kind == "disc":
        return y**2 + x**2 <= radius**2
    if kind == "square":
        along, across = y * turn + x * other, x * turn - y * other
        # The half side is 7/8 of the radius, so that the area is nearly a disc's.
        bound = 7 * (turn**2 + other**2)
        return (np.abs(8 * along) <= bound) & (np.abs(8 * across) <= bound)
    # An equilateral triangle whose corners are 4/3 radii away; in 90ths of a pixel, 30 of them for the turn by 120°.
    corners = [(120 * turn, 120 * other)]
    cos, sin = _THIRD
    for sign in (1, -1):
        first, second = 4 * (cos * turn - sign * sin * other), 4 * (sign * sin * turn + cos * other)
        corners.append((first, second))
    inside = True
    for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside = inside & ((90 * x - x0) * (y1 - y0) - (90 * y - y0) * (x1 - x0) >= 0)
    return inside
