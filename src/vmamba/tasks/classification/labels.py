"""The order of classes: a data set's against a trained model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vmamba.data import LabelledImages, Splits
from vmamba.data.types import Targets
from vmamba.errors import DataError


class RelabelledImages:
    """Another set's images, class ``i`` there being class ``order[i]`` here."""

    def __init__(self, images: LabelledImages, order: Sequence[int]) -> None:
        self.images = images
        self.order = order
        self.targets: Targets
        if images.targets.ndim == 1:
            self.targets = np.asarray(order)[images.targets]
        else:
            self.targets = np.empty_like(images.targets)
            self.targets[:, np.asarray(order)] = images.targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image, _ = self.images[index]
        target = self.targets[index]
        return image, int(target) if target.ndim == 0 else target

    def name(self, index: int) -> str:
        """The other set's."""
        return self.images.name(index)

    def fingerprint(self) -> str:
        """The set's own, and the order."""
        return f"{self.images.fingerprint()} {self.order}"


def in_order(splits: Splits, classes: Sequence[str], ids: Sequence[str], weights: Path) -> Splits:
    """The same images, labelled by their place among ``classes``: the same names in another order are fine.

    Args:
        splits: the images. Classes named by some of ``ids`` are taken by these.
        classes: the model's, in the order of its logits.
        ids: a word for each of them that no other has; empty where there are none.
        weights: what messages call the model.

    Raises:
        DataError: the names are not the same, or some occur more than once in another order.
    """
    if splits.classes == tuple(classes):
        return splits
    if ids and set(splits.classes) <= set(ids):
        known = ids
    elif sorted(splits.classes) == sorted(classes):
        known = classes
        if twice := _repeated(classes):
            raise DataError(
                f"{weights} has several classes called {', '.join(map(repr, twice))}, and the data has its classes in "
                f"another order, so labels cannot be matched by name; {_mend(ids)}"
            )
    else:
        raise DataError(
            f"the data has {_named(splits.classes)}, but {weights} was trained on {_named(classes)}; "
            f"measure on images of those classes{f', or {_mend(ids)}' if ids else ''}"
        )
    place = {name: i for i, name in enumerate(known)}
    order = [place[name] for name in splits.classes]
    test = None if splits.test is None else RelabelledImages(splits.test, order)
    train, val = RelabelledImages(splits.train, order), RelabelledImages(splits.val, order)
    return replace(splits, train=train, val=val, test=test, classes=tuple(classes))


def class_of_folder(path: Path, classes: Sequence[str], ids: Sequence[str]) -> int | None:
    """The class that an image's folder is called by, as a place in ``classes``; None where it is called otherwise.

    Raises:
        DataError: several classes have that name.
    """
    name = path.absolute().parent.name
    if name in ids:
        return ids.index(name)
    places = [i for i, other in enumerate(classes) if other == name]
    if len(places) > 1:
        raise DataError(
            f"{path} lies in a folder {name!r}, but classes {' and '.join(map(str, places))} are both called that; "
            f"{_mend(ids)}, or leave truth=folder out"
        )
    return places[0] if places else None


def distinct_names(classes: Sequence[str], ids: Sequence[str] = ()) -> tuple[str, ...]:
    """Names for people that no two classes share: a repeated one is followed by the class's id, or its place."""
    twice = _repeated(classes)
    return tuple(f"{name} ({ids[i] if ids else i})" if name in twice else name for i, name in enumerate(classes))


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _mend(ids: Sequence[str]) -> str:
    return f"name its folders by ids ({ids[0]}, …)" if ids else "give the classes names of their own"


def _named(classes: Sequence[str]) -> str:
    more = f", … {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{len(classes)} classes ({', '.join(classes[:10])}{more})"
