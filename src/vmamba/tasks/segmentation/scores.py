"""What a segmenter got right, counted in pixels: the `Meter` and `Measurement` of the task.

IoU and its mean are upstream's: intersections and unions are summed over all images, pixels to be ignored left out, and
a class that is absent from labels and answers alike is left out of every mean. torchmetrics'
``multiclass_jaccard_index`` gives the same IoU for each class; its mean counts absent classes, so means are taken here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vmamba.errors import DataError
from vmamba.tasks.segmentation.distances import hausdorff95

if TYPE_CHECKING:
    from rich.console import RenderableType

#: A value for each class; None where the class has none.
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class ClassScore:
    """One class's row, over all images; None where nothing is there to divide by.

    Attributes:
        name: the class.
        iou: intersection over union.
        sensitivity: share of its pixels that were found, which is upstream's Acc.
        specificity: share of the other pixels that were not taken for it.
        dice: 2·intersection / (pixels labelled + pixels answered).
        hd95: mean over images of the 95 % Hausdorff distance, pixels; of images where both labels and answer have it.
        pixels: labelled so.
    """

    name: str
    iou: float | None
    sensitivity: float | None
    specificity: float | None
    dice: float | None
    hd95: float | None
    pixels: int


@dataclass(frozen=True)
class ImageScore:
    """One image's row: values for the classes, see `ClassScore`; None for a class that the image lacks."""

    name: str
    iou: Values
    dice: Values
    hd95: Values


@dataclass(frozen=True)
class SegmentationScores:
    """A segmenter's results on labelled images.

    Attributes:
        classes: one row a class, in the order of the logits.
        images: one row an image, in their order.
        confusion: pixels; ``confusion[i][j]`` of class ``i`` were taken for class ``j``.
    """

    classes: tuple[ClassScore, ...]
    images: tuple[ImageScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.images)

    @property
    def figures(self) -> dict[str, float]:
        """Means over the classes that occur, and the share of pixels that are right."""
        counts = np.asarray(self.confusion)
        return {
            "miou": _mean([row.iou for row in self.classes]),
            "macc": _mean([row.sensitivity for row in self.classes]),
            "aacc": float(np.trace(counts) / max(1, counts.sum())),
            "dice": _mean([row.dice for row in self.classes]),
        }

    @property
    def image_dice(self) -> float:
        """The mean over images of each one's mean Dice over its classes, as medical studies report it."""
        return _mean([_mean(row.dice) for row in self.images])

    def summary(self) -> str:
        """The figures."""
        f = self.figures
        far = [row.hd95 for row in self.classes if row.hd95 is not None]
        said = f"mIoU {f['miou']:.2%}   mAcc {f['macc']:.2%}   aAcc {f['aacc']:.2%}   Dice {f['dice']:.2%}"
        return said + (f"   HD95 {_mean(far):.1f} px" if far else "")

    def tables(self, part: str) -> Iterable[RenderableType]:
        """A row for each class."""
        from vmamba.tasks.segmentation.report import score_table

        yield score_table(self, part)
        yield ""

    def to_dict(self) -> dict[str, Any]:
        """The figures, each class's row, each image's values by class, and the confusion."""
        names = [row.name for row in self.classes]

        def by_name(values: Values) -> dict[str, float]:
            known = zip(names, values, strict=True)
            return {name: round(value, 6) for name, value in known if value is not None}

        images = [{"name": row.name, "iou": by_name(row.iou), "dice": by_name(row.dice), "hd95": by_name(row.hd95)}
                  for row in self.images]  # fmt: skip
        return {
            **self.figures,
            "image_dice": self.image_dice,
            "classes": [asdict(row) for row in self.classes],
            "images": images,
            "confusion": [list(row) for row in self.confusion],
        }

    def metadata(self) -> dict[str, str]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class ImageCounts:
    """What must be known of one image: its name, its confusion ``(classes, classes)``, and distances of borders."""

    name: str
    confusion: npt.NDArray[np.int64]
    hd95: Values


class PixelMeter:
    """Counts pixels; holds one matrix of counts, and a row for each image.

    Args:
        classes: names.
        ignore: the label that is not counted.
        distances: whether borders' distances are measured, which takes longer than all the rest.
    """

    def __init__(self, classes: Sequence[str], ignore: int, distances: bool = False) -> None:
        self._names = tuple(classes)
        self._ignore = ignore
        self._distances = distances
        self._confusion = np.zeros((len(classes), len(classes)), np.int64)
        self._images: list[ImageScore] = []
        self._far: list[Values] = []

    def observe(self, outputs: Sequence[Tensor], batch: Any) -> list[ImageCounts]:
        """Of the answers ``(h, w)`` and the batch's names and labels of those sizes."""
        found = []
        for answer, name, labels in zip(outputs, batch["names"], batch["labels"], strict=True):
            found.append(self._counts(np.asarray(answer.cpu()), name, np.asarray(labels.cpu())))
        return found

    def _counts(self, answer: npt.NDArray[Any], name: str, labels: npt.NDArray[Any]) -> ImageCounts:
        count, known = len(self._names), labels != self._ignore
        pairs = labels[known].astype(np.int64) * count + answer[known]
        confusion = np.bincount(pairs, minlength=count**2).reshape(count, count)
        hd95: list[float | None] = [None] * count
        if self._distances:
            for index in np.flatnonzero(confusion.any(0) & confusion.any(1)).tolist():
                hd95[index] = hausdorff95((labels == index) & known, (answer == index) & known)
        return ImageCounts(name, confusion, tuple(hd95))

    def update(self, observation: Sequence[ImageCounts]) -> None:
        """Count some images."""
        for image in observation:
            self._confusion += image.confusion
            iou, _, _, dice = _ratios(image.confusion)
            self._images.append(ImageScore(image.name, iou, dice, image.hd95))

    def measurement(self) -> SegmentationScores:
        """Everything counted so far; needs one labelled pixel at least.

        Raises:
            DataError: there is none.
        """
        if not self._confusion.any():
            raise DataError(f"no pixel of {len(self._images)} image(s) is labelled, so there is nothing to measure")
        columns = _ratios(self._confusion)
        far = [[row.hd95[i] for row in self._images] for i in range(len(self._names))]
        hd95 = [_mean(values) if any(value is not None for value in values) else None for values in far]
        pixels = self._confusion.sum(1).tolist()
        rows = tuple(ClassScore(*row) for row in zip(self._names, *columns, hd95, pixels, strict=True))
        return SegmentationScores(rows, tuple(self._images), tuple(tuple(row) for row in self._confusion.tolist()))


def _ratios(confusion: npt.NDArray[np.int64]) -> tuple[Values, Values, Values, Values]:
    """IoU, sensitivity, specificity and Dice of each class."""
    hits, labelled, answered = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    others = confusion.sum() - labelled
    return (
        _shares(hits, labelled + answered - hits),
        _shares(hits, labelled),
        _shares(others - (answered - hits), others),
        _shares(2 * hits, labelled + answered),
    )


def _shares(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Values:
    return tuple(p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True))


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
