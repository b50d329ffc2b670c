"""From a configuration to images: the table of loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vmamba.data.config import DataConfig
from vmamba.data.datasets import digits, fashion_mnist, folder, marks, shards, table
from vmamba.data.splits import balanced_sample
from vmamba.data.types import SelectedImages, Splits
from vmamba.errors import DataError


def load_splits(config: DataConfig) -> Splits:
    """Load the data set that ``config`` names.

    Raises:
        DataError: files are missing, broken, or do not make a classification data set; says which and the mend.
    """
    loaders: dict[str, Callable[[DataConfig], Splits]] = {
        "digits": digits.load,
        "fashion-mnist": fashion_mnist.load,
        "folder": folder.load,
        "marks": marks.load,
        "shards": shards.load,
    }
    if config.dataset not in loaders:
        raise DataError(
            f'dataset="{config.dataset}" has a class for each pixel, not for each image; give task=segmentation'
        )
    splits = (table.load if config.labels is not None else loaders[config.dataset])(config)
    if config.train_images is None:
        return splits
    if config.train_images > len(splits.train):
        raise DataError(f"train_images={config.train_images}, but there are {len(splits.train)} training images")
    targets = splits.train.targets
    if targets.ndim > 1:  # several labels an image: there is no balance to keep
        targets = np.zeros(len(targets), np.int64)
    chosen = balanced_sample(targets, config.train_images, config.seed)
    return replace(splits, train=SelectedImages(splits.train, chosen))
