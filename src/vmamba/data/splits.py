"""Training, validation and test images of a data set, with all that belongs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vmamba.data.config import DataConfig
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


def stratified_split(
    targets: Sequence[int], fractions: Sequence[float], seed: int
) -> tuple[npt.NDArray[np.int64], ...]:
    """Split indices into parts of the given ``fractions`` (summing to 1), each class in the same proportions.

    Within a class sizes are rounded to the nearest, and every part gets one image at least.

    Raises:
        DataError: a class has fewer images than there are parts.
    """
    # RandomState's stream is frozen by numpy's policy; Generator's is not.
    random = np.random.RandomState(seed)
    labels = np.asarray(targets)
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < len(fractions):
            raise DataError(f"class {label} has {len(members)} image(s): too few for {len(fractions)} parts")
        edges = np.rint(np.cumsum(fractions[:-1]) * len(members)).astype(np.int64)
        lowest = np.arange(1, len(fractions))
        edges = np.minimum(np.maximum(edges, lowest), len(members) - lowest[::-1])
        for part, chosen in zip(parts, np.split(members, edges), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def balanced_sample(targets: Sequence[int], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose ``count`` indices at random, class by class in turn until a class has no more."""
    random = np.random.RandomState(seed)
    labels = np.asarray(targets)
    ranked = []  # (turn, random order of the classes within it, index)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ranked += [(turn, random.random_sample(), int(index)) for turn, index in enumerate(members)]
    return np.sort(np.array([index for *_, index in sorted(ranked)[:count]], dtype=np.int64))


#: Share of training, validation and test where a data set comes unsplit.
FRACTIONS = (0.6, 0.2, 0.2)


def load_splits(config: DataConfig) -> Splits:
    """Load the data set that ``config`` names.

    Raises:
        DataError: files are missing, broken, or do not make a classification data set; says which and the mend.
    """
    from vmamba.data import digits, fashion_mnist, folder, long_range

    loaders: dict[str, Callable[[DataConfig], Splits]] = {
        "digits": digits.load,
        "fashion-mnist": fashion_mnist.load,
        "folder": folder.load,
        "marks": long_range.load,
    }
    splits = loaders[config.dataset](config)
    if config.train_images is None:
        return splits
    if config.train_images > len(splits.train):
        raise DataError(f"train_images={config.train_images}, but there are {len(splits.train)} training images")
    chosen = balanced_sample(splits.train.targets, config.train_images, config.seed)
    return replace(splits, train=SelectedImages(splits.train, chosen))


def preprocessing_for(config: DataConfig, fixed_size: tuple[int, int] | None = None) -> Preprocessing:
    """The data set's preprocessing, with what ``config`` asks for instead.

    ``fixed_size``, height and width, is for a data set without an image size of its own in the table.
    """
    row = config.defaults
    size = config.image_size or row.image_size or fixed_size
    assert size is not None
    preprocessing = Preprocessing(
        size, row.in_chans, row.mean, row.std, interpolation=row.interpolation, crop_pct=row.crop_pct
    )
    if config.in_chans is not None and config.in_chans != row.in_chans:
        # One channel repeated, or three averaged.
        def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
            return values * 3 if config.in_chans == 3 else (round(sum(values) / len(values), 4),)

        preprocessing = replace(preprocessing, in_chans=config.in_chans, mean=adapt(row.mean), std=adapt(row.std))
    return preprocessing


def split_arrays(images: ArrayImages, classes: Sequence[str], config: DataConfig) -> Splits:
    """Split one in-memory set 60/20/20, stratified by class."""
    train, val, test = (images.subset(part) for part in stratified_split(images.targets, FRACTIONS, config.seed))
    return Splits(train, val, test, tuple(classes), preprocessing_for(config))
