"""Training, validation and test images of a data set, with all that belongs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vmamba.data.preprocessing import ImageTransform, Preprocessing
from vmamba.errors import DataError


class LabelledImages(Protocol):
    """A map-style data set of ``(image, class index)``."""

    @property
    def targets(self) -> Sequence[int]:
        """The class index of every image."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def fingerprint(self) -> str:
        """A short word that changes when the images, their order or their labels do."""


class ArrayImages:
    """Images in memory: ``pixels (m, h, w)`` grey or ``(m, h, w, 3)`` RGB, uint8, with ``targets (m,)``."""

    def __init__(self, pixels: npt.NDArray[np.uint8], targets: Sequence[int]) -> None:
        if len(pixels) != len(targets):
            raise DataError(f"{len(pixels)} images but {len(targets)} labels")
        self.pixels = pixels
        self.targets: Sequence[int] = [int(t) for t in targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.targets[index]

    def subset(self, indices: npt.NDArray[np.int64]) -> ArrayImages:
        """The images at ``indices``, in that order."""
        return ArrayImages(self.pixels[indices], [self.targets[i] for i in indices])

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
        self.targets: Sequence[int] = [images.targets[i] for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.indices[index])]

    def fingerprint(self) -> str:
        """A hash of the set's own fingerprint and the choice."""
        return hashlib.sha256(self.images.fingerprint().encode() + self.indices.tobytes()).hexdigest()[:16]


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """``(image, label)`` → ``(tensor, label)``."""

    def __init__(self, images: LabelledImages, transform: ImageTransform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.images[index]
        return self.transform(image), target


@dataclass(frozen=True)
class Splits:
    """A data set in three parts. ``test`` is None where the data set has none.

    Attributes:
        train: images to learn from.
        val: images to choose the best epoch by.
        test: images for the final measurement only.
        classes: class names; a label is an index into them.
        preprocessing: what turns an image into the model's input.
        skipped: files left out because they cannot be decoded (``unreadable="skip"``).
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: a line for each part, and the classes."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        lines = {k: "none" if p is None else f"{len(p)} images, {p.fingerprint()}" for k, p in parts.items()}
        return {**lines, "classes": ", ".join(self.classes)}
