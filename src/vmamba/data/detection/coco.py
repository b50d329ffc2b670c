"""Files of objects in COCO's format: read, checked, and put in order."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vmamba.data.detection.categories import Categories
from vmamba.errors import DataError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Annotation:
    """One object of an image, as a file says.

    Attributes:
        id: its number.
        label: of its category, from 0.
        box: x, y, width and height in pixels.
        segmentation: polygons, or runs (a dict of ``size`` and ``counts``, packed or not).
        crowd: whether it marks a group of objects that are not told apart.
        area: in pixels, where the file says.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    segmentation: Any
    crowd: bool
    area: float | None

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Its mask as packed runs, which pycocotools takes.

        Raises:
            DataError: it cannot be one of an image of that size.
        """
        from pycocotools import mask as masks

        try:
            if isinstance(self.segmentation, list):
                return dict(masks.merge(masks.frPyObjects(self.segmentation, height, width)))
            if isinstance(self.segmentation["counts"], list):
                runs = masks.frPyObjects(self.segmentation, height, width)
            else:
                runs = self.segmentation
            if tuple(runs["size"]) != (height, width):
                raise ValueError(f"it is for {runs['size'][1]}×{runs['size'][0]} pixels")
            packed = runs["counts"].encode() if isinstance(runs["counts"], str) else runs["counts"]
            return {"size": [height, width], "counts": packed}
        except Exception as error:  # pycocotools raises what it likes
            raise DataError(
                f"annotation {self.id}: its segmentation is no mask of an image of {width}×{height} pixels: {error}"
            ) from error

    def mask(self, height: int, width: int) -> Mask:
        """Its pixels ``(height, width)``. Raises DataError as `rle`."""
        from pycocotools import mask as masks

        decoded: Mask = masks.decode(self.rle(height, width)).astype(bool)
        return decoded


@dataclass(frozen=True)
class CocoImage:
    """One image of a file.

    Attributes:
        id: its number.
        file_name: under the folder of images.
        height: in pixels.
        width: in pixels.
        annotations: its objects.
    """

    id: int
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]


def read_coco(path: Path) -> tuple[Categories, list[CocoImage]]:
    """Read one file; images come in the order of their numbers.

    Raises:
        DataError: it is no such file, or contradicts itself: numbers that occur twice, or that refer to nothing.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; get it, or write it, again") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(part), list) for part in parts):
        raise DataError(f"{path} is not in COCO's format, which has the lists {', '.join(parts)}")
    try:
        return _read(content)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an entry lacks, or has a wrong, {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read(content: Mapping[str, Any]) -> tuple[Categories, list[CocoImage]]:
    for part in ("images", "annotations", "categories"):
        _refuse_doubles([row["id"] for row in content[part]], part)
    if not content["categories"]:
        raise DataError("it has no categories, so that there is nothing to tell apart")
    categories = Categories.of([(int(row["id"]), str(row["name"])) for row in content["categories"]])
    labels = categories.label_of
    of_image: dict[int, list[Annotation]] = {int(row["id"]): [] for row in content["images"]}
    for row in content["annotations"]:
        number = int(row["id"])
        if row["category_id"] not in labels:
            raise DataError(
                f"annotation {number} is of category {row['category_id']}, which the file does not list; "
                f"it has {_some(list(labels))}"
            )
        if row["image_id"] not in of_image:
            raise DataError(f"annotation {number} is of image {row['image_id']}, which the file does not list")
        box = tuple(float(value) for value in row["bbox"])
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise DataError(f"annotation {number}: bbox {row['bbox']} is not x, y, width, height")
        segmentation = row.get("segmentation")
        if not segmentation:
            raise DataError(
                f"annotation {number} has no segmentation, and Mask R-CNN learns masks; add polygons or runs"
            )
        area = row.get("area")
        of_image[int(row["image_id"])].append(
            Annotation(
                number,
                labels[row["category_id"]],
                box,
                segmentation,
                bool(row.get("iscrowd", 0)),
                None if area is None else float(area),
            )
        )
    images = [
        CocoImage(int(r["id"]), str(r["file_name"]), int(r["height"]), int(r["width"]), tuple(of_image[int(r["id"])]))
        for r in content["images"]
    ]
    return categories, sorted(images, key=lambda image: image.id)


def _refuse_doubles(numbers: Sequence[Any], part: str) -> None:
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} id(s) of {part} occur twice, the first: {twice[0]}; number them anew")


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "")
