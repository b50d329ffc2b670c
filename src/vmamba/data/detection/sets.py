"""Images with objects as data sets: COCO's files, the generated shapes, and their three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from vmamba.data.datasets.shapes import Shapes
from vmamba.data.detection.categories import Categories
from vmamba.data.detection.coco import Annotation, CocoImage, Mask
from vmamba.data.preprocessing import Preprocessing
from vmamba.data.reading.images import UnreadableImageError, read_image
from vmamba.data.types import parts_fingerprint
from vmamba.errors import DataError


@dataclass(frozen=True)
class Objects:
    """What can be learnt from one image; n objects, crowds and what has no pixels in the image left out.

    Attributes:
        boxes: ``(n, 4)``, float32: x1, y1, x2, y2 within the image.
        labels: ``(n,)``, int64, from 0.
        masks: ``(n, h, w)``, bool.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: Mask


class DetectionImages(Protocol):
    """Images with their objects."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """In RGB."""

    def objects(self, index: int) -> Objects:
        """To learn from."""

    def truth(self, index: int) -> list[dict[str, Any]]:
        """To measure on: annotations as pycocotools has them, ``category_id`` being the label, packed runs as masks."""

    def name(self, index: int) -> str:
        """What messages and results call an image."""

    def fingerprint(self) -> str:
        """A short word that changes when the images, their order or their objects do."""


@dataclass(frozen=True)
class CocoImages:
    """Image files and their objects.

    Attributes:
        folder: of the images.
        images: which.
        skip: whether a file that cannot be read may be left out, see `UnreadableImageError.may_skip`.
    """

    folder: Path
    images: Sequence[CocoImage]
    skip: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Read the file; one whose size is not what its annotations are for is refused."""
        entry = self.images[index]
        path = self.folder / entry.file_name
        try:
            with_size = _unturned(path)
        except UnreadableImageError as error:
            error.may_skip = self.skip
            raise
        if with_size.size != (entry.width, entry.height):
            raise DataError(
                f"image {path} is {with_size.width}×{with_size.height} pixels, but its annotations are for "
                f"{entry.width}×{entry.height}"
            )
        return with_size

    def objects(self, index: int) -> Objects:
        """Boxes are cut at the border; those of nothing are left out, as crowds are."""
        entry = self.images[index]
        rows = [(one, _inside(one, entry)) for one in entry.annotations if not one.crowd]
        rows = [(one, box) for one, box in rows if box[2] > box[0] and box[3] > box[1]]
        masks = [one.mask(entry.height, entry.width) for one, _ in rows]
        return Objects(
            np.array([box for _, box in rows], np.float32).reshape(-1, 4),
            np.array([one.label for one, _ in rows], np.int64),
            np.array(masks, bool).reshape(-1, entry.height, entry.width),
        )

    def truth(self, index: int) -> list[dict[str, Any]]:
        """All annotations, as the file has them."""
        from pycocotools import mask as masks

        entry, rows = self.images[index], []
        for one in entry.annotations:
            runs = one.rle(entry.height, entry.width)
            area = float(masks.area(runs)) if one.area is None else one.area
            rows.append({"category_id": one.label, "bbox": list(one.box), "segmentation": runs, "area": area,
                         "iscrowd": int(one.crowd)})  # fmt: skip
        return rows

    def subset(self, indices: Sequence[int]) -> CocoImages:
        """The images at ``indices``, in that order."""
        return CocoImages(self.folder, [self.images[index] for index in indices], self.skip)

    def name(self, index: int) -> str:
        """The file."""
        return str(self.folder / self.images[index].file_name)

    def fingerprint(self) -> str:
        """From names, sizes, categories and boxes."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.file_name}\0{image.height} {image.width}\n".encode())
            digest.update(repr([(one.label, one.box, one.crowd) for one in image.annotations]).encode())
        return digest.hexdigest()[:16]


def _unturned(path: Path) -> Image.Image:
    """An image as its file stores it: COCO's annotations do not know of marks that turn it."""
    try:
        with Image.open(path) as stored:
            turned = stored.getexif().get(0x0112, 1) != 1
            if turned:
                return Image.fromarray(np.asarray(stored.convert("RGB")))
    except (OSError, ValueError):
        pass  # said better below
    return read_image(path, 3)


def _inside(one: Annotation, image: CocoImage) -> tuple[float, float, float, float]:
    x, y, w, h = one.box
    return max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))


@dataclass(frozen=True)
class ShapeObjects:
    """One part of the generated shapes, each an object; the background is none."""

    shapes: Shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def image(self, index: int) -> Image.Image:
        """The picture."""
        return Image.fromarray(self.shapes[index].image)

    def objects(self, index: int) -> Objects:
        """What is in sight of each."""
        sample = self.shapes[index]
        return Objects(sample.boxes.astype(np.float32), sample.labels - 1, sample.masks)

    def truth(self, index: int) -> list[dict[str, Any]]:
        """The same, as annotations."""
        found, rows = self.objects(index), []
        for box, label, mask in zip(found.boxes.tolist(), found.labels.tolist(), found.masks, strict=True):
            x1, y1, x2, y2 = box
            rows.append({"category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": packed(mask),
                         "area": float(mask.sum()), "iscrowd": 0})  # fmt: skip
        return rows

    def name(self, index: int) -> str:
        """Part and place."""
        return self.shapes.name(index)

    def fingerprint(self) -> str:
        """The shapes'."""
        return self.shapes.fingerprint()


def packed(mask: Any) -> dict[str, Any]:
    """``(h, w)``, bool, as packed runs."""
    from pycocotools import mask as masks

    return dict(masks.encode(np.asfortranarray(mask, np.uint8)))


@dataclass(frozen=True)
class DetectionSplits:
    """A data set in three parts.

    Attributes:
        train: images to learn from.
        val: images to choose the best epoch by.
        test: images for the final measurement only; None where there are none.
        categories: what objects may be.
        preprocessing: from an image to pixels.
        skipped: files left out because they cannot be read.
    """

    train: DetectionImages
    val: DetectionImages
    test: DetectionImages | None
    categories: Categories
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: a line for each part, and the categories."""
        return {**parts_fingerprint(self.train, self.val, self.test), "categories": ", ".join(self.categories.names)}
