"""Splitting labelled images into parts, and choosing some of them: the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.types import ArrayImages, Splits, Targets
from vmamba.errors import DataError

#: Share of training, validation and test where a data set comes unsplit.
FRACTIONS = (0.6, 0.2, 0.2)


def stratified_split(
    targets: Sequence[int] | Targets, fractions: Sequence[float], seed: int
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


def balanced_sample(targets: Sequence[int] | Targets, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose ``count`` indices at random, class by class in turn until a class has no more."""
    random = np.random.RandomState(seed)
    labels = np.asarray(targets)
    ranked = []  # (turn, random order of the classes within it, index)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ranked += [(turn, random.random_sample(), int(index)) for turn, index in enumerate(members)]
    return np.sort(np.array([index for *_, index in sorted(ranked)[:count]], dtype=np.int64))


def split_arrays(images: ArrayImages, classes: Sequence[str], config: DataConfig) -> Splits:
    """Split one in-memory set 60/20/20, stratified by class."""
    train, val, test = (images.subset(part) for part in stratified_split(images.targets, FRACTIONS, config.seed))
    return Splits(train, val, test, tuple(classes), preprocessing_for(config))
