"""COCO's average precision, by its own tool.

pycocotools computes it here directly, not torchmetrics' wrapper around it: that one wants every mask of every image
as full pixels at once (2 GB for a hundred detections in ten large images), where packed runs are enough.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmamba.data.detection.sets import packed
from vmamba.heads.mask_rcnn import Detections

if TYPE_CHECKING:
    from rich.console import RenderableType

#: What pycocotools' summary says, in its order: average precision, then average recall.
SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
           "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
_KINDS: Mapping[str, str] = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class CategoryScore:
    """One category: its objects, and its average precision of boxes and masks; None where it has no objects."""

    name: str
    objects: int
    box_ap: float | None
    mask_ap: float | None


@dataclass(frozen=True)
class DetectionScores:
    """A detector's results.

    Attributes:
        count: how many images.
        box: each of `SUMMARY` for boxes; None where there are no objects of that size.
        mask: likewise for masks.
        categories: one row each.
    """

    count: int
    box: Mapping[str, float | None]
    mask: Mapping[str, float | None]
    categories: tuple[CategoryScore, ...]

    @property
    def figures(self) -> dict[str, float]:
        """Average precision; 0 where there is nothing to find."""
        kinds = {"box": self.box, "mask": self.mask}
        return {f"{kind}_{name}": kinds[kind][name] or 0.0 for kind in kinds for name in ("ap", "ap50")}

    def summary(self) -> str:
        """The figures."""
        f = self.figures
        return (
            f"box AP {f['box_ap']:.1%}   AP50 {f['box_ap50']:.1%}   "
            f"mask AP {f['mask_ap']:.1%}   AP50 {f['mask_ap50']:.1%}"
        )

    def tables(self, part: str) -> Iterable[RenderableType]:
        """Each figure of the standard tool, and each category."""
        from vmamba.tasks.detection.report import category_table, summary_table

        yield summary_table(self, part)
        yield ""
        yield category_table(self, part)
        yield ""

    def to_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            **self.figures,
            "box": dict(self.box),
            "mask": dict(self.mask),
            "categories": [asdict(row) for row in self.categories],
        }

    def metadata(self) -> dict[str, str]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class ImageResult:
    """One image: its name, size, annotations, and detections as pycocotools has them."""

    name: str
    size: tuple[int, int]
    annotations: list[dict[str, Any]]
    detections: list[dict[str, Any]]


class DetectionMeter:
    """Collects detections and annotations; images without annotations to go by are left out.

    Args:
        names: of the categories.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.images: list[ImageResult] = []

    def observe(self, outputs: Sequence[Detections], batch: Any) -> list[ImageResult | None]:
        """One object an image."""
        results: list[ImageResult | None] = []
        sizes = batch["inputs"][2]
        for found, known, name, size in zip(outputs, batch["annotations"], batch["names"], sizes, strict=True):
            if known is None:
                results.append(None)
                continue
            results.append(ImageResult(name, (int(size[0]), int(size[1])), known, as_rows(found)))
        return results

    def update(self, observation: Sequence[ImageResult | None]) -> None:
        """Take in what `observe` gave."""
        self.images += [one for one in observation if one is not None]

    def measurement(self) -> DetectionScores:
        """The result so far."""
        objects = np.zeros(len(self.names), np.int64)
        for image in self.images:
            for row in image.annotations:
                objects[row["category_id"]] += not row["iscrowd"]
        measured = {kind: _average_precision(self.images, len(self.names), word) for kind, word in _KINDS.items()}
        rows = [
            CategoryScore(name, int(objects[i]), measured["box"][1][i], measured["mask"][1][i])
            for i, name in enumerate(self.names)
        ]
        return DetectionScores(len(self.images), measured["box"][0], measured["mask"][0], tuple(rows))


def as_rows(found: Detections) -> list[dict[str, Any]]:
    """Detections as annotations, ``category_id`` being the label: x, y, width, height and packed runs."""
    rows = []
    columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.masks.cpu().numpy())
    for (x1, y1, x2, y2), score, label, mask in zip(*columns, strict=True):
        rows.append(
            {"category_id": label, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": packed(mask)}
        )
    return rows


def _average_precision(
    images: Sequence[ImageResult], count: int, kind: str
) -> tuple[dict[str, float | None], list[float | None]]:
    """pycocotools' summary of all, and the average precision of each category."""
    from pycocotools import mask as masks
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entries = [{"id": i, "height": one.size[0], "width": one.size[1]} for i, one in enumerate(images, 1)]
    kinds = [{"id": label, "name": str(label)} for label in range(count)]
    truth, found = COCO(), COCO()
    for data, part in ((truth, "annotations"), (found, "detections")):
        rows: list[dict[str, Any]] = []
        for i, one in enumerate(images, 1):
            rows += [{"iscrowd": 0, **row, "image_id": i, "id": 0} for row in getattr(one, part)]
        for number, row in enumerate(rows, 1):
            row["id"] = number
            if part == "detections":
                row["area"] = (
                    row["bbox"][2] * row["bbox"][3] if kind == "bbox" else float(masks.area(row["segmentation"]))
                )
        data.dataset = {"images": entries, "annotations": rows, "categories": kinds}
        with contextlib.redirect_stdout(io.StringIO()):
            data.createIndex()
    judge = COCOeval(truth, found, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # precision: thresholds, recalls, categories, areas (all of them first), most detections (100 last)
    precision = judge.eval["precision"][:, :, :, 0, -1]
    each = [_known(precision[:, :, i]) for i in range(count)]
    return {name: None if v < 0 else float(v) for name, v in zip(SUMMARY, judge.stats, strict=True)}, each


def _known(values: Any) -> float | None:
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else None
