"""What a detector says about one image, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmamba.data.detection.categories import Categories
from vmamba.data.reading.arrays import preview
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.heads.mask_rcnn import Detections
from vmamba.tasks.detection.scores import as_rows

#: Longest side of the picture that a contact sheet shows.
_THUMBNAIL = 400
#: What a mask's colour counts beside the image's own.
_OPACITY = 0.45


@dataclass(frozen=True)
class DetectedObject:
    """One object.

    Attributes:
        label: of its category.
        score: 0..1.
        box: x1, y1, x2, y2 in pixels of the image.
        mask: packed runs, ``size`` and ``counts`` as text, as in COCO's files.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class DetectedImage:
    """One image's answer.

    Attributes:
        path: the file.
        size: its height and width.
        objects: best first.
        categories: what they may be.
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[DetectedObject, ...]
    categories: Categories = field(repr=False, compare=False)

    @classmethod
    def of(cls, path: Path, found: Detections, categories: Categories) -> DetectedImage:
        """From a model's output."""
        objects = []
        for row in as_rows(found):
            x, y, w, h = row["bbox"]
            runs = {"size": row["segmentation"]["size"], "counts": row["segmentation"]["counts"].decode()}
            objects.append(DetectedObject(row["category_id"], row["score"], (x, y, x + w, y + h), runs))
        return cls(path, (found.masks.shape[-2], found.masks.shape[-1]), tuple(objects), categories)

    def above(self, score: float) -> DetectedImage:
        """With the objects of at least that score."""
        kept = tuple(one for one in self.objects if one.score >= score)
        return DetectedImage(self.path, self.size, kept, self.categories)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        objects = [
            {
                "category": self.categories.names[one.label],
                "score": round(one.score, 6),
                "box": [round(value, 3) for value in one.box],
                "mask": dict(one.mask),
            }
            for one in self.objects
        ]
        return {"path": str(self.path), "height": self.size[0], "width": self.size[1], "objects": objects}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], categories: Categories) -> DetectedImage:
        """Undo `to_dict`."""
        objects = tuple(
            DetectedObject(categories.names.index(row["category"]), row["score"], tuple(row["box"]), row["mask"])
            for row in values["objects"]
        )
        return cls(Path(values["path"]), (values["height"], values["width"]), objects, categories)

    def coco_results(self, image_id: int | str) -> list[dict[str, Any]]:
        """The rows of a COCO results file."""
        rows = []
        for one in self.objects:
            x1, y1, x2, y2 = one.box
            rows.append({"image_id": image_id, "category_id": self.categories.ids[one.label], "score": one.score,
                         "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": dict(one.mask)})  # fmt: skip
        return rows

    def picture(self, longest: int | None = _THUMBNAIL) -> Image.Image:
        """The image, at most ``longest`` pixels, with masks, boxes, names and scores; the best ones on top."""
        from pycocotools import mask as masks

        image = preview(self.path).convert("RGB")
        factor = 1.0 if longest is None else min(1.0, longest / max(image.size))
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        colours = PixelClasses.of(self.categories.names).palette
        pixels = np.asarray(image, np.float32).copy()
        if pixels.shape[:2] == self.size:
            for one in reversed(self.objects):
                inside = masks.decode({**one.mask, "counts": one.mask["counts"].encode()}).astype(bool)
                pixels[inside] = pixels[inside] * (1 - _OPACITY) + np.array(colours[one.label]) * _OPACITY
        shown = Image.fromarray(pixels.round().astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        draw = ImageDraw.Draw(shown)
        font = ImageFont.load_default(max(10, round(max(size) / 50)))
        for one in reversed(self.objects):
            _draw(draw, one, self.categories.names[one.label], colours[one.label], factor, font)
        return shown


def _draw(draw: Any, one: DetectedObject, name: str, colour: Sequence[int], factor: float, font: Any) -> None:
    x1, y1, x2, y2 = (value * factor for value in one.box)
    draw.rectangle((x1, y1, x2, y2), outline=tuple(colour), width=2)
    text = f"{name} {one.score:.0%}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    w, h = right - left + 4, bottom - top + 4
    y = y1 - h if y1 >= h else y1
    draw.rectangle((x1, y, x1 + w, y + h), fill=tuple(colour))
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x1 + 2 - left, y + 2 - top), text, fill="black" if dark else "white", font=font)
