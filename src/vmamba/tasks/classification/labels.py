"""The order of classes: a data set's against a trained model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from vmamba.data import LabelledImages, Splits
from vmamba.errors import DataError


class RelabelledImages:
    """Another set's images, class ``i`` there being class ``order[i]`` here."""

    def __init__(self, images: LabelledImages, order: Sequence[int]) -> None:
        self.images = images
        self.order = order
        self.targets: Sequence[int] = [order[target] for target in images.targets]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.images[index]
        return image, self.order[target]

    def fingerprint(self) -> str:
        """The set's own, and the order."""
        return f"{self.images.fingerprint()} {self.order}"


def in_order(splits: Splits, classes: Sequence[str], weights: Path) -> Splits:
    """The same images, labelled by their place among ``classes``: the same names in another order are fine.

    Raises:
        DataError: the names are not the same.
    """
    if splits.classes == tuple(classes):
        return splits
    if sorted(splits.classes) != sorted(classes):
        raise DataError(
            f"the data has {_named(splits.classes)}, but {weights} was trained on {_named(classes)}; "
            "measure on images of those classes"
        )
    order = [list(classes).index(name) for name in splits.classes]
    test = None if splits.test is None else RelabelledImages(splits.test, order)
    train, val = RelabelledImages(splits.train, order), RelabelledImages(splits.val, order)
    return replace(splits, train=train, val=val, test=test, classes=tuple(classes))


def _named(classes: Sequence[str]) -> str:
    more = f", … {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{len(classes)} classes ({', '.join(classes[:10])}{more})"
