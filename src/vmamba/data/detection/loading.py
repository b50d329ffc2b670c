"""From a configuration to images with objects: a folder in COCO's format, or the generated shapes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.datasets import shapes
from vmamba.data.detection.categories import Categories
from vmamba.data.detection.coco import CocoImage, read_coco
from vmamba.data.detection.sets import CocoImages, DetectionSplits, ShapeObjects
from vmamba.errors import DataError

#: Share of training, validation and test where a folder comes undivided, and of validation where it has no val.
FRACTIONS = (0.6, 0.2, 0.2)
VAL_FRACTION = 0.2
_FILE = re.compile(r"instances_((train|val|test)?.*)\.json")


def load_detection(config: DataConfig, to_learn: bool = True) -> DetectionSplits:
    """Load the images that ``config`` names.

    Args:
        config: which.
        to_learn: whether there must be training images.

    Raises:
        DataError: files are missing, broken or do not go together; says which, and the mend.
    """
    if config.dataset == "shapes":
        train, val, test = (ShapeObjects(shapes.Shapes(part, config.seed)) for part in shapes.SIZES)
        names = Categories.of(list(enumerate(shapes.CLASSES[1:], start=1)))
        splits = DetectionSplits(train, val, test, names, preprocessing_for(config))
        if config.train_images is not None:
            _want_enough(config.train_images, len(train))
            splits = replace(splits, train=ShapeObjects(shapes.Shapes("train", config.seed, config.train_images)))
        return splits
    if config.dataset != "coco":
        raise DataError(
            f'dataset="{config.dataset}" has no objects with boxes and masks; detection learns from "shapes" '
            '(generated) or "coco" (data_dir with annotations/instances_*.json and folders of images)'
        )
    return _folder(config, to_learn)


def _folder(config: DataConfig, to_learn: bool) -> DetectionSplits:
    assert config.data_dir is not None  # DataConfig sees to it
    found = _files(config.data_dir)
    parts: dict[str, CocoImages] = {}
    categories: Categories | None = None
    left_out: list[str] = []
    for part, (path, word) in found.items():
        own, images = read_coco(path)
        if categories is not None and own != categories:
            raise DataError(
                f"{path} has other categories than the first file in {path.parent}: {', '.join(own.names[:10])} "
                f"against {', '.join(categories.names[:10])}; give all files the same"
            )
        categories = own
        parts[part] = _present(images, _image_folder(config.data_dir, word), config, left_out)
    assert categories is not None
    train, val, test = _divided(parts, config, to_learn)
    if not any(image.annotations for image in val.images):
        raise DataError(f"none of the {len(val)} validation images has an object: nothing can be measured on them")
    if config.train_images is not None:
        _want_enough(config.train_images, len(train))
        order = np.random.RandomState(config.seed).permutation(len(train))
        train = train.subset(np.sort(order[: config.train_images]).tolist())
    return DetectionSplits(train, val, test, categories, preprocessing_for(config), tuple(left_out))


def _files(folder: Path) -> dict[str, tuple[Path, str]]:
    """The annotation file of each part (train, val, test, or ``""`` where undivided), and the rest of its name."""
    place = folder / "annotations"
    if not place.is_dir():
        raise DataError(f"{folder} has no folder annotations; COCO's format has annotations/instances_*.json there")
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(place.glob("instances_*.json")):
        match = _FILE.fullmatch(path.name)
        assert match is not None
        part = match[2] or ""
        if part in found:
            raise DataError(
                f"{place} has two files of one part, {found[part][0].name} and {path.name}; move one of them away"
            )
        found[part] = (path, match[1])
    if not found:
        raise DataError(f"{place} has no instances_*.json, such as instances_train2017.json or instances_default.json")
    return found


def _image_folder(folder: Path, word: str) -> Path:
    """Where the images of ``annotations/instances_<word>.json`` lie."""
    places = [folder / word, folder / "images" / word, folder / "images"]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"the images of instances_{word}.json are missing: no folder {' or '.join(map(str, places))}")


def _present(images: list[CocoImage], folder: Path, config: DataConfig, left_out: list[str]) -> CocoImages:
    """The images whose files are there."""
    missing = [image for image in images if not (folder / image.file_name).is_file()]
    if missing and config.unreadable == "stop":
        raise DataError(
            f"{len(missing)} of {len(images)} images are missing in {folder}, the first: {missing[0].file_name}; get "
            'them, or leave them out with unreadable="skip"'
        )
    left_out += [str(folder / image.file_name) for image in missing]
    gone = {image.id for image in missing}
    return CocoImages(folder, [image for image in images if image.id not in gone], config.unreadable == "skip")


def _divided(
    parts: dict[str, CocoImages], config: DataConfig, to_learn: bool
) -> tuple[CocoImages, CocoImages, CocoImages | None]:
    """Training, validation and test images; where a part is missing, some of another, the same for the same seed."""
    test = parts.get("test")
    if "train" in parts and "val" in parts:
        return parts["train"], parts["val"], test
    if not to_learn and "train" not in parts and "" not in parts:
        only = parts.get("val") or parts["test"]
        return only, only, test
    whole = parts.get("") or parts.get("train")
    if whole is None:
        raise DataError("there are no images to learn from: annotations has no instances_train*.json")
    if "val" in parts:
        return whole, parts["val"], test
    fractions = (1 - VAL_FRACTION, VAL_FRACTION) if "train" in parts or test is not None else FRACTIONS
    if len(whole) < len(fractions):
        raise DataError(f"{len(whole)} image(s) are too few to split into {len(fractions)} parts; add some")
    order = np.random.RandomState(config.seed).permutation(len(whole))
    edges = np.rint(np.cumsum(fractions[:-1]) * len(whole)).astype(np.int64)
    lowest = np.arange(1, len(fractions))
    edges = np.minimum(np.maximum(edges, lowest), len(whole) - lowest[::-1])
    split = [whole.subset(sorted(part.tolist())) for part in np.split(order, edges)]
    return split[0], split[1], split[2] if len(split) > 2 else test


def _want_enough(wanted: int, there: int) -> None:
    if wanted > there:
        raise DataError(f"train_images={wanted}, but there are {there} training images")
