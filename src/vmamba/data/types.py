"""Training, validation and test images of a data set, with all that belongs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vmamba.data.preprocessing import ImageTransform, Preprocessing
from vmamba.data.reading.file_images import FaultLog
from vmamba.data.reading.images import UnreadableImageError
from vmamba.errors import DataError

#: The label of an image that could not be read, where it must not be counted.
NO_LABEL = -1
#: Images in a row that cannot be read and are left out; more are a disk that is gone.
MOST_SKIPPED = 100

Targets = npt.NDArray[np.integer[Any]]
Image_ = TypeVar("Image_")


class LabelledImages(Protocol):
    """A map-style data set of ``(image, label)``.

    An image is a PIL image, or of full depth an array ``(in_chans, H, W)``; a label a class index, or of several
    ``(classes,)`` of 0 and 1.
    Reading one that is damaged raises `UnreadableImageError`.
    """

    @property
    def targets(self) -> Targets:
        """The label of every image: class indices ``(n,)``, or ``(n, classes)`` of 0 and 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def name(self, index: int) -> str:
        """What messages call an image: its file, or its place."""

    def fingerprint(self) -> str:
        """A short word that changes when the images, their order or their labels do."""


class ArrayImages:
    """Images in memory: ``pixels (m, h, w)`` grey or ``(m, h, w, 3)`` RGB, uint8, with ``targets (m,)``."""

    def __init__(self, pixels: npt.NDArray[np.uint8], targets: Sequence[int] | Targets) -> None:
        if len(pixels) != len(targets):
            raise DataError(f"{len(pixels)} images but {len(targets)} labels")
        self.pixels = pixels
        self.targets: Targets = np.asarray(targets, np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.targets[index])

    def name(self, index: int) -> str:
        """Its place."""
        return f"image {index}"

    def subset(self, indices: npt.NDArray[np.int64]) -> ArrayImages:
        """The images at ``indices``, in that order."""
        return ArrayImages(self.pixels[indices], self.targets[indices])

    def fingerprint(self) -> str:
        """A hash of pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        digest.update(np.asarray(self.targets, np.int64).tobytes())
        return digest.hexdigest()[:16]


class SelectedImages:
    """Some of another set's images, at ``indices``."""

    def __init__(self, images: LabelledImages, indices: npt.NDArray[np.int64]) -> None:
        self.images = images
        self.indices = indices
        self.targets: Targets = images.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[int(self.indices[index])]

    def name(self, index: int) -> str:
        """The other set's."""
        return self.images.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        """A hash of the set's own fingerprint and the choice."""
        return hashlib.sha256(self.images.fingerprint().encode() + self.indices.tobytes()).hexdigest()[:16]


class TransformedImages(Dataset[tuple[Tensor, Any]]):
    """``(image, label)`` → ``(tensor, label)``.

    An image that cannot be read stops the reading, unless it may be left out: then the next that can be read stands in
    its place, so that batches keep their size, and the same one each time.

    Args:
        images: which.
        transform: what makes a tensor of one.
        replace: whether a replacement has its own label, to be learnt from. Else it has `NO_LABEL`, which is not
            counted: a measurement must not see an image twice.
    """

    def __init__(self, images: LabelledImages, transform: ImageTransform, replace: bool = False) -> None:
        self.images = images
        self.transform = transform
        self.replace = replace

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # where `for` ends
        image, target = self._read(index)
        return self.transform(image), target

    def _read(self, index: int) -> tuple[Any, Any]:
        (image, target), skipped = first_readable(self.images.__getitem__, len(self), index)
        if skipped and not self.replace:
            target = NO_LABEL if isinstance(target, int) else np.full_like(target, NO_LABEL)
        return image, target


def first_readable(read: Callable[[int], Image_], count: int, index: int) -> tuple[Image_, int]:
    """What ``read`` gives of the first image from ``index`` on that can be read, and how many were passed over.

    Args:
        read: from an index below ``count`` to an image with what belongs to it.
        count: of images; after the last comes the first.
        index: where to begin.

    Raises:
        UnreadableImageError: one that may not be left out. DataError: `MOST_SKIPPED` in a row cannot be read.
    """
    for step in range(min(count, MOST_SKIPPED)):
        try:
            return read((index + step) % count), step
        except UnreadableImageError as error:
            if not error.may_skip:
                raise
            last = error
    raise DataError(f"{min(count, MOST_SKIPPED)} images in a row cannot be read; the last: {last}")


@dataclass(frozen=True)
class Splits:
    """A data set in three parts. ``test`` is None where the data set has none.

    Attributes:
        train: images to learn from.
        val: images to choose the best epoch by.
        test: images for the final measurement only.
        classes: class names; a label is an index into them.
        preprocessing: what turns an image into the model's input.
        left_out: files that were found damaged before anything else, and are in no part (``unreadable="skip"``).
        faults: where files are noted that are found damaged later.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    left_out: tuple[str, ...] = ()
    faults: tuple[FaultLog, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """All files found damaged so far, as this process and its loaders' know."""
        return self.left_out + tuple(name for log in self.faults for name in log.names())

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: a line for each part, and the classes."""
        return {**parts_fingerprint(self.train, self.val, self.test), "classes": ", ".join(self.classes)}


class Fingerprinted(Protocol):
    """A set of samples that says when it has changed."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A short word that changes when the samples do."""


def parts_fingerprint(train: Fingerprinted, val: Fingerprinted, test: Fingerprinted | None) -> Mapping[str, str]:
    """A line for each part of a data set, with its number of images and its fingerprint."""
    parts = {"train": train, "val": val, "test": test}
    return {k: "none" if p is None else f"{len(p)} images, {p.fingerprint()}" for k, p in parts.items()}
