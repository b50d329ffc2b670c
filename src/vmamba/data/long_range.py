"""Marks: a generated data set that cannot be learnt without carrying information across the image.

Two small squares lie at opposite ends of a noisy image, each red or green; the label says whether their colours
are the same. Each mark alone tells nothing, and no threshold on a sum of what is seen at single places solves it
(the label is the exclusive-or of the two colours), so some place of the network has to know both marks. They are
so far apart that a nano-sized VMamba without its scan has no such place: with its patch embedding (7 pixels wide,
stride 4) and three 3×3 downsampling convolutions, one token of the last stage sees 63 pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig
from vmamba.data.splits import ArrayImages, Splits, preprocessing_for

CLASSES = ("different", "same")
SIDE = 96
MARK = 6
#: Pixels between the marks, at least: more than one token of the last stage can see.
GAP = 64
SIZES = {"train": 4096, "val": 512, "test": 1024}

_COLOURS = np.array([[230, 40, 40], [40, 230, 40]], np.uint8)


def make_marks(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Generate images ``(count, 96, 96, 3)``, uint8, and their labels ``(count,)``; the same for the same seed.

    The four pairs of colours are equally many (as far as ``count`` divides), in random order.
    """
    random = np.random.RandomState(seed)
    noise = random.randint(64, 192, (count, SIDE, SIDE, 1), np.uint8)  # grey: only the marks have a colour
    pixels = np.repeat(noise, 3, axis=3)
    pairs = random.permutation(np.arange(count) % 4)
    colours = np.stack([pairs // 2, pairs % 2], axis=1)
    room = SIDE - GAP - 2 * MARK  # to share between both marks' distances from their edges
    for i in range(count):
        near = random.randint(room + 1)
        far = SIDE - MARK - random.randint(room - near + 1)
        along = (near, far)
        across = random.randint(SIDE - MARK + 1, size=2)
        image = pixels[i].transpose(1, 0, 2) if random.randint(2) else pixels[i]
        for k in range(2):
            image[along[k] : along[k] + MARK, across[k] : across[k] + MARK] = _COLOURS[colours[i, k]]
    return pixels, (colours[:, 0] == colours[:, 1]).astype(np.int64)


def load(config: DataConfig) -> Splits:
    """Training, validation and test images, generated from three different seeds."""
    parts = []
    for offset, count in enumerate(SIZES.values()):
        pixels, labels = make_marks(count, 3 * config.seed + offset)
        parts.append(ArrayImages(pixels, labels.tolist()))
    return Splits(parts[0], parts[1], parts[2], CLASSES, preprocessing_for(config))
