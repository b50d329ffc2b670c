"""Images with a class for every pixel as data sets: pairs of files, generated shapes, and their three parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vmamba.data.datasets.shapes import Shapes
from vmamba.data.preprocessing import Preprocessing
from vmamba.data.reading.arrays import read_pixels
from vmamba.data.reading.files import spread
from vmamba.data.reading.images import UnreadableImageError, read_image
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.data.segmentation.masks import Labels, MaskFormat
from vmamba.data.segmentation.pairs import Pair
from vmamba.data.types import parts_fingerprint
from vmamba.errors import DataError

#: Files whose sizes go into a fingerprint.
_SIZES_SEEN = 10_000


class SegmentedImages(Protocol):
    """A map-style data set of ``(image, labels)``: a PIL image, or of full depth an array ``(in_chans, h, w)``, and a
    class for each pixel, ``(h, w)``, uint16.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Labels]: ...

    def name(self, index: int) -> str:
        """What messages and results call an image."""

    def fingerprint(self) -> str:
        """A short word that changes when the images, their order or their labels do."""


@dataclass(frozen=True)
class PairImages:
    """Image and mask files, read when asked for.

    Attributes:
        pairs: which.
        masks: how masks are read.
        in_chans: channels that images are read with.
        full_depth: whether images are arrays, see `vmamba.data.reading.arrays.read_pixels`.
        skip: whether a file that cannot be read may be left out, see `UnreadableImageError.may_skip`.
    """

    pairs: Sequence[Pair]
    masks: MaskFormat
    in_chans: int = 3
    full_depth: bool = False
    skip: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Labels]:
        pair = self.pairs[index]
        try:
            read: Callable[[Path, int], Any] = read_pixels if self.full_depth else read_image
            image = read(pair.image, self.in_chans)
            labels = self.masks.read(pair.mask)
        except UnreadableImageError as error:
            error.may_skip = self.skip
            raise
        size = image.shape[1:] if self.full_depth else (image.height, image.width)
        if labels.shape != tuple(size):
            raise DataError(
                f"image {pair.image} is {size[1]}×{size[0]} pixels, its mask {pair.mask} {labels.shape[1]}×"
                f"{labels.shape[0]}: a mask tells the class of each pixel, so make it again at the image's size "
                "(an image with a mark that turns it is read turned)"
            )
        return image, labels

    def subset(self, indices: Sequence[int]) -> PairImages:
        """The pairs at ``indices``, in that order."""
        chosen = [self.pairs[index] for index in indices]
        return PairImages(chosen, self.masks, self.in_chans, self.full_depth, self.skip)

    def name(self, index: int) -> str:
        """The image's file."""
        return str(self.pairs[index].image)

    def fingerprint(self) -> str:
        """From names, how masks are read, and some files' sizes."""
        digest = hashlib.sha256(repr(self.masks).encode())
        measured = set(spread(len(self.pairs), _SIZES_SEEN).tolist())
        for index, pair in enumerate(self.pairs):
            sizes = (
                [p.stat().st_size if p.exists() else -1 for p in (pair.image, pair.mask)] if index in measured else []
            )
            digest.update(os.fsencode(pair.image.name) + b"\0" + os.fsencode(pair.mask.name) + f"\0{sizes}\n".encode())
        return digest.hexdigest()[:16]

    def faults(self, indices: Sequence[int]) -> dict[int, UnreadableImageError]:
        """Read some pairs; those that cannot be read. What is readable but wrong raises `DataError`."""

        def fault(index: int) -> UnreadableImageError | None:
            try:
                self[index]
            except UnreadableImageError as error:
                return error
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = zip(indices, pool.map(fault, indices), strict=True)
            return {index: error for index, error in found if error is not None}


@dataclass(frozen=True)
class ShapeImages:
    """One part of the generated shapes, with what is in sight of them as labels."""

    shapes: Shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Labels]:
        sample = self.shapes[index]
        return Image.fromarray(sample.image), sample.semantic.astype(np.uint16)

    def name(self, index: int) -> str:
        """Part and place."""
        return self.shapes.name(index)

    def fingerprint(self) -> str:
        """The shapes'."""
        return self.shapes.fingerprint()


@dataclass(frozen=True)
class SegmentationSplits:
    """A data set in three parts.

    Attributes:
        train: images to learn from.
        val: images to choose the best epoch by.
        test: images for the final measurement only; None where there are none.
        classes: names and colours.
        masks: what labels may be.
        preprocessing: from an image to pixels.
        skipped: files left out because they cannot be read.
    """

    train: SegmentedImages
    val: SegmentedImages
    test: SegmentedImages | None
    classes: PixelClasses
    masks: MaskFormat
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: a line for each part, and the classes."""
        return {**parts_fingerprint(self.train, self.val, self.test), "classes": ", ".join(self.classes.names)}


def label_counts(images: SegmentedImages, count: int) -> tuple[int, ...]:
    """How many pixels of each class a data set has; reads every mask."""
    total = np.zeros(count, np.int64)

    def of(index: int) -> Any:
        labels = images.masks.read(images.pairs[index].mask) if isinstance(images, PairImages) else images[index][1]
        return np.bincount(labels.ravel(), minlength=count)[:count]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for counts in pool.map(of, range(len(images))):
            total += counts
    return tuple(total.tolist())
