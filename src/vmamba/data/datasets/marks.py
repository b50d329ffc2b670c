"""Marks: a generated data set that cannot be learnt without carrying information across the image.

A wide, noisy image has a red or green square at either end; the label says whether their colours are the same. One
mark alone tells nothing, and a sum over what is seen at single places cannot tell either: the label is the
exclusive-or of the two colours, for which the best such sum in the sense of cross-entropy is a constant. So some
place of the network has to know both marks. They lie farther apart than a nano-sized VMamba sees without its scan:
through its patch embedding (7 pixels wide, stride 4) and three 3×3 convolutions of stride 2, one token of the last
stage sees 7 + 2·4 + 2·8 + 2·16 = 63 pixels, and after that stage tokens are only averaged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.types import ArrayImages, Splits

CLASSES = ("different", "same")
#: Height and width of an image, pixels.
SIZE = (16, 96)
#: Side of a mark.
MARK = 12
#: Pixels between the marks, at least: more than one token of the last stage can see.
GAP = 64
SIZES = {"train": 4096, "val": 512, "test": 1024}

_COLOURS = np.array([[230, 40, 40], [40, 230, 40]], np.uint8)


def make_marks(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Generate images ``(count, 16, 96, 3)``, uint8, and their labels ``(count,)``; the same for the same seed.

    The four pairs of colours are equally many (as far as ``count`` divides), in random order.
    """
    random = np.random.RandomState(seed)
    height, width = SIZE
    noise = random.randint(112, 144, (count, height, width, 1), np.uint8)  # grey: only the marks have a colour
    pixels = np.repeat(noise, 3, axis=3)
    pairs = random.permutation(np.arange(count) % 4)
    colours = np.stack([pairs // 2, pairs % 2], axis=1)
    room = width - GAP - 2 * MARK  # shared between the marks' distances from the edges
    for i in range(count):
        left = random.randint(room + 1)
        right = width - MARK - random.randint(room - left + 1)
        tops = random.randint(height - MARK + 1, size=2)
        for x, y, colour in zip((left, right), tops, colours[i], strict=True):
            pixels[i, y : y + MARK, x : x + MARK] = _COLOURS[colour]
    return pixels, (colours[:, 0] == colours[:, 1]).astype(np.int64)


def load(config: DataConfig) -> Splits:
    """Training, validation and test images, generated from three different seeds."""
    parts = []
    for offset, count in enumerate(SIZES.values()):
        pixels, labels = make_marks(count, 3 * config.seed + offset)
        parts.append(ArrayImages(pixels, labels.tolist()))
    return Splits(parts[0], parts[1], parts[2], CLASSES, preprocessing_for(config, SIZE))
