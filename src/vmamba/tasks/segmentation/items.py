"""What a loader gives of images with labels: crops to learn from, whole images to measure on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vmamba.data.segmentation.sets import SegmentedImages
from vmamba.data.segmentation.transforms import EvalTransform, TrainTransform
from vmamba.data.types import first_readable


class CropItems(Dataset[tuple[Tensor, Tensor]]):
    """Random crops ``(in_chans, H, W)`` and their labels ``(H, W)``; ``crops`` of each image in an epoch.

    An image that may be left out is replaced by the next that can be read, so that batches keep their size.
    """

    def __init__(self, images: SegmentedImages, transform: TrainTransform, crops: int = 1) -> None:
        self.images = images
        self.transform = transform
        self.crops = crops

    def __len__(self) -> int:
        return len(self.images) * self.crops

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = first_readable(self.images.__getitem__, len(self.images), index // self.crops)[0]
        return self.transform(image, labels)


class WholeItems(Dataset[dict[str, Any]]):
    """Images as their views, with size, labels and name; one that may be left out has no labelled pixel."""

    def __init__(self, images: SegmentedImages, transform: EvalTransform, ignore: int) -> None:
        self.images = images
        self.transform = transform
        self.ignore = ignore

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # where `for` ends
        (image, labels), skipped = first_readable(self.images.__getitem__, len(self), index)
        if skipped:
            labels = np.full_like(labels, self.ignore)
        views, size = self.transform(image)
        return {
            "views": views,
            "size": size,
            "labels": torch.from_numpy(labels.astype(np.int32)),
            "name": self.images.name(index),
        }
