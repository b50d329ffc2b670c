"""From a configuration to images with a class for every pixel: folders of masks, or the generated shapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmamba.data.arrays import channel_statistics
from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.datasets import shapes
from vmamba.data.file_images import MEASURED, VERIFIED
from vmamba.data.files import spread
from vmamba.data.segmentation.classes import PixelClasses, pixel_classes
from vmamba.data.segmentation.masks import IGNORE, MaskFormat, read_values
from vmamba.data.segmentation.pairs import Pair, find_pairs
from vmamba.data.segmentation.sets import PairImages, SegmentationSplits, SegmentedImages, ShapeImages
from vmamba.errors import ConfigError, DataError

#: Share of training, validation and test where a folder comes undivided, and of validation where it has no val.
FRACTIONS = (0.6, 0.2, 0.2)
VAL_FRACTION = 0.2


@dataclass(frozen=True)
class MaskOptions:
    """What must be known of masks besides their files; see `MaskFormat`.

    Attributes:
        classes: as `pixel_classes` takes them; None to count them in the masks.
        ignore_index: the label of pixels that are neither learnt nor counted.
        reduce_zero_label: whether 0 means such a pixel.
        mask_values: the value in a file that stands for each class.
    """

    classes: Any = None
    ignore_index: int = IGNORE
    reduce_zero_label: bool = False
    mask_values: tuple[int, ...] = ()


def load_segmentation(config: DataConfig, options: MaskOptions, to_learn: bool = True) -> SegmentationSplits:
    """Load the images that ``config`` names.

    Args:
        config: which.
        options: how their masks are to be read.
        to_learn: whether there must be training images.

    Raises:
        DataError: files are missing, broken or do not go together; says which, and the mend.
        ConfigError: options that do not suit the data set.
    """
    if config.dataset == "shapes":
        splits = _shapes(config, options)
    elif config.dataset == "masks":
        splits = _folder(config, options, to_learn)
    else:
        raise DataError(
            f'dataset="{config.dataset}" has no class for each pixel; segmentation learns from "shapes" (generated) or '
            '"masks" (data_dir with images/ and masks/)'
        )
    if config.train_images is None:
        return splits
    if config.train_images > len(splits.train):
        raise DataError(f"train_images={config.train_images}, but there are {len(splits.train)} training images")
    if isinstance(splits.train, ShapeImages):
        fewer: SegmentedImages = ShapeImages(shapes.Shapes("train", config.seed, config.train_images))
    else:
        assert isinstance(splits.train, PairImages)
        order = np.random.RandomState(config.seed).permutation(len(splits.train))
        fewer = splits.train.subset(np.sort(order[: config.train_images]).tolist())
    return replace(splits, train=fewer)


def _shapes(config: DataConfig, options: MaskOptions) -> SegmentationSplits:
    if options != MaskOptions():
        raise ConfigError('classes, mask_values and the like are for dataset="masks"; "shapes" brings its own')
    train, val, test = (ShapeImages(shapes.Shapes(part, config.seed)) for part in shapes.SIZES)
    classes = PixelClasses.of(shapes.CLASSES)
    return SegmentationSplits(train, val, test, classes, MaskFormat(len(classes)), preprocessing_for(config))


def _folder(config: DataConfig, options: MaskOptions, to_learn: bool) -> SegmentationSplits:
    assert config.data_dir is not None  # DataConfig sees to it
    parts = find_pairs(config.data_dir)
    every = [pair for pairs in parts.values() for pair in pairs]
    classes = _counted(every, options) if options.classes is None else pixel_classes(options.classes)
    masks = MaskFormat(
        len(classes),
        options.ignore_index,
        options.reduce_zero_label,
        tuple(options.mask_values),
        () if classes.made_up else classes.palette,
    )
    in_chans = config.in_chans or config.defaults.in_chans

    def images(pairs: Sequence[Pair]) -> PairImages:
        return PairImages(pairs, masks, in_chans, config.full_depth, config.unreadable == "skip")

    left_out: list[str] = []
    good = {name: _verified(images(pairs), config, left_out) for name, pairs in parts.items()}
    train, val, test = _divided({name: part.pairs for name, part in good.items()}, config, to_learn)
    measured = [train[index].image for index in spread(len(train), MEASURED).tolist()]
    preprocessing = preprocessing_for(config, measured=lambda: channel_statistics(measured, in_chans))
    last = None if test is None else images(test)
    return SegmentationSplits(images(train), images(val), last, classes, masks, preprocessing, tuple(left_out))


def _verified(images: PairImages, config: DataConfig, left_out: list[str]) -> PairImages:
    """The pairs without those that were found to be damaged; a wrong mask among those looked at is an error."""
    if config.verify == "none":
        return images
    looked_at = range(len(images)) if config.verify == "all" else spread(len(images), VERIFIED).tolist()
    faults = images.faults(looked_at)
    if not faults:
        return images
    if config.unreadable == "stop":
        first = next(iter(faults.values()))
        raise DataError(
            f'{len(faults)} pair(s) cannot be read, the first: {first}. Leave them out with unreadable="skip"'
        )
    left_out += [images.name(index) for index in faults]
    return images.subset([index for index in range(len(images)) if index not in faults])


def _divided(
    parts: dict[str, Sequence[Pair]], config: DataConfig, to_learn: bool
) -> tuple[Sequence[Pair], Sequence[Pair], Sequence[Pair] | None]:
    """Training, validation and test pairs; where a part is missing, some of another, the same for the same seed."""
    known = list(parts.get("", [])) or [*parts.get("train", []), *parts.get("val", [])]
    order = np.random.RandomState(config.seed).permutation(len(known)).tolist()
    if config.folds is not None:
        if config.folds > len(known):
            raise DataError(f"folds={config.folds}, but there are {len(known)} images")
        held = set(order[config.fold :: config.folds])
        train = [pair for index, pair in enumerate(known) if index not in held]
        return train, [known[index] for index in sorted(held)], parts.get("test")
    if "" in parts:
        return tuple(_split(known, order, FRACTIONS))  # type: ignore[return-value]
    if "train" not in parts and not to_learn:
        return [], parts.get("val", []), parts.get("test")
    if "train" not in parts:
        raise DataError(f"{config.data_dir} has {', '.join(parts)} but no train; want images to learn from")
    if "val" in parts:
        return parts["train"], parts["val"], parts.get("test")
    train, val = _split(known, order, (1 - VAL_FRACTION, VAL_FRACTION))
    return train, val, parts.get("test")


def _split(pairs: Sequence[Pair], order: Sequence[int], fractions: Sequence[float]) -> list[list[Pair]]:
    """Parts of the ``fractions``, rounded, with one pair each at least."""
    if len(pairs) < len(fractions):
        raise DataError(f"{len(pairs)} image(s) are too few to split into {len(fractions)} parts; add some")
    edges = np.rint(np.cumsum(fractions[:-1]) * len(pairs)).astype(np.int64)
    lowest = np.arange(1, len(fractions))
    edges = np.minimum(np.maximum(edges, lowest), len(pairs) - lowest[::-1])
    return [[pairs[index] for index in sorted(part.tolist())] for part in np.split(np.array(order), edges)]


def _counted(pairs: Sequence[Pair], options: MaskOptions) -> PixelClasses:
    """Classes by the values in all masks, which are read for it."""
    if options.mask_values:
        return PixelClasses.of([f"class {index}" for index in range(len(options.mask_values))])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = {value for values in pool.map(lambda pair: np.unique(read_values(pair.mask)).tolist(), pairs)
                for value in values}  # fmt: skip
    if seen <= {0, 255} and 255 in seen:
        raise DataError(
            f"the masks in {pairs[0].mask.parent} hold 0 and 255 alone, and 255 means to ignore a pixel; if white is "
            "the second class give task_options.mask_values=[0, 255]"
        )
    ignored = {options.ignore_index, *([0, IGNORE] if options.reduce_zero_label else [])}
    count = max(seen - ignored, default=0) + (0 if options.reduce_zero_label else 1)
    if count < 2:
        raise DataError(
            f"the masks in {pairs[0].mask.parent} show one class alone ({sorted(seen)}): there is nothing to tell "
            "apart; if others are to come, name all with task_options.classes"
        )
    return PixelClasses.of([f"class {index}" for index in range(count)])
