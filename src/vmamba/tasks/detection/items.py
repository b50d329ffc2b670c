"""What a loader gives of images with objects: changed ones to learn from, whole ones to measure on; and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from vmamba.data.detection.sets import DetectionImages
from vmamba.data.detection.transforms import EvalTransform, TrainTransform
from vmamba.data.types import first_readable
from vmamba.heads.mask_rcnn.preparation import pad

#: Pixels of images padded to one size, and the height and width of each without padding, and of its file.
Inputs = tuple[Tensor, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


class TrainItems(Dataset[dict[str, Any]]):
    """Pixels, boxes, labels and masks. An image that may be left out is replaced by the next that can be read."""

    def __init__(self, images: DetectionImages, transform: TrainTransform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, skipped = first_readable(self.images.image, len(self), index)
        pixels, boxes, labels, masks = self.transform(image, self.images.objects((index + skipped) % len(self)))
        return {"pixels": pixels, "truth": (boxes, labels, masks)}


class EvalItems(Dataset[dict[str, Any]]):
    """Pixels, the image's own size, its annotations and its name; one that may be left out has no annotations."""

    def __init__(self, images: DetectionImages, transform: EvalTransform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # where `for` ends
        image, skipped = first_readable(self.images.image, len(self), index)
        pixels, size = self.transform(image)
        truth = None if skipped else self.images.truth(index)
        return {"pixels": pixels, "size": size, "annotations": truth, "name": self.images.name(index)}


def stacked(pixels: Sequence[Tensor], originals: Sequence[tuple[int, int]]) -> Inputs:
    """Images of several sizes as one input."""
    sizes = tuple((image.shape[-2], image.shape[-1]) for image in pixels)
    return pad(pixels), sizes, tuple(originals)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch to learn from (``inputs``, ``truths``) or to measure on (``inputs``, ``annotations``, ``names``)."""
    pixels = [sample["pixels"] for sample in samples]
    if "truth" in samples[0]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        return {"inputs": stacked(pixels, sizes), "truths": [sample["truth"] for sample in samples]}
    return {
        "inputs": stacked(pixels, [sample["size"] for sample in samples]),
        "annotations": [sample["annotations"] for sample in samples],
        "names": [sample["name"] for sample in samples],
    }
