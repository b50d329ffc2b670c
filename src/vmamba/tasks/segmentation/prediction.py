"""What a segmenter says about one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vmamba.data.arrays import preview
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.tasks.overlay import overlay

#: Longest side of the picture that a contact sheet shows.
_THUMBNAIL = 320


@dataclass(frozen=True)
class SegmentedImage:
    """One image's answer.

    Attributes:
        path: the file.
        size: its height and width.
        pixels: how many pixels each class fills, by name; those that occur, in the order of the logits.
        classes: all of them.
        small: a class for each pixel of the image made small; None where the answer was read back, which keeps areas
            alone.
    """

    path: Path
    size: tuple[int, int]
    pixels: Mapping[str, int]
    classes: PixelClasses = field(repr=False, compare=False)
    small: npt.NDArray[Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, path: Path, labels: npt.NDArray[Any], classes: PixelClasses) -> SegmentedImage:
        """From the classes of its pixels, ``labels (h, w)``."""
        counts = np.bincount(labels.ravel(), minlength=len(classes)).tolist()
        pixels = {name: count for name, count in zip(classes.names, counts, strict=True) if count}
        return cls(path, (labels.shape[0], labels.shape[1]), pixels, classes, _shrunk(labels))

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of the image that each class fills."""
        return {name: count / (self.size[0] * self.size[1]) for name, count in self.pixels.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        areas = [
            {"class": name, "pixels": count, "share": round(self.shares[name], 6)}
            for name, count in self.pixels.items()
        ]
        return {"path": str(self.path), "height": self.size[0], "width": self.size[1], "areas": areas}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: PixelClasses) -> SegmentedImage:
        """Undo `to_dict`; the labels are not kept there."""
        pixels = {row["class"]: row["pixels"] for row in values["areas"]}
        return cls(Path(values["path"]), (values["height"], values["width"]), pixels, classes)

    def picture(self) -> Image.Image:
        """The image, small, with its classes' colours over it where these are known."""
        image = preview(self.path)
        if self.small is None:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            return image
        height, width = self.small.shape
        return overlay(image.resize((width, height)), self.small, self.classes)


def _shrunk(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every so many rows and columns of labels ``(h, w)``, so that the longest side fits a contact sheet."""
    height, width = labels.shape
    factor = max(1.0, max(height, width) / _THUMBNAIL)
    rows, columns = (((np.arange(max(1, int(n / factor))) + 0.5) * factor).astype(int) for n in (height, width))
    return labels[rows[:, None].clip(max=height - 1), columns.clip(max=width - 1)]
