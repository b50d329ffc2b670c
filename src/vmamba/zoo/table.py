"""The named models as a table: size counted here, published figures quoted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vmamba.architecture.detector_variants import PublishedDetector
from vmamba.architecture.segmenter_variants import PublishedSegmenter
from vmamba.architecture.variants import Published
from vmamba.errors import ConfigError, nearest
from vmamba.zoo.create import create_model, list_models
from vmamba.zoo.families import family_of, names

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ModelRow:
    """One model. ``flops``, ``top1``, ``miou``, ``box_ap`` and ``mask_ap`` are what upstream published, where it did.

    Classifiers: ImageNet-1K at 224×224. Segmenters: ADE20K, one scale, FLOPs at 512×2048. Detectors: COCO
    val2017.
    """

    name: str
    family: str
    parameters: int  # counted, with 1000 classes, a segmenter's with 150, a detector's with 80
    flops: float | None  # multiply-adds
    top1: float | None  # percent
    task: str = "classification"
    miou: float | None = None  # percent
    box_ap: float | None = None  # percent
    mask_ap: float | None = None  # percent

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def model_rows(pattern: str = "*") -> list[ModelRow]:
    """The models whose names match a shell pattern, or hold ``pattern`` where it has no ``*``, ``?`` or ``[``.

    Raises:
        ConfigError: no model matches.
    """
    found = list_models(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")
    if not found:
        raise ConfigError(f"no model's name matches {pattern!r}{nearest(pattern, names())}; `vmamba models` lists all")
    return [_row(name) for name in found]


def _row(name: str) -> ModelRow:
    with torch.device("meta"):  # shapes without memory
        model = create_model(name)
    family = family_of(name)
    variant = family.variants[name]
    published = variant.published
    return ModelRow(
        name=name,
        family=variant.family,
        task=family.task,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=published.flops_g * 1e9 if isinstance(published, (Published, PublishedSegmenter)) else None,
        top1=published.top1 if isinstance(published, Published) else None,
        miou=published.miou if isinstance(published, PublishedSegmenter) else None,
        box_ap=published.box_ap if isinstance(published, PublishedDetector) else None,
        mask_ap=published.mask_ap if isinstance(published, PublishedDetector) else None,
    )


def models_table(rows: list[ModelRow]) -> Table:
    """The rows as they are printed."""
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        caption="Parameters are counted with 1000 classes, a segmenter's with 150, a detector's with 80. FLOPs, "
        "top-1, mIoU and AP (boxes / masks): upstream's published figures, ImageNet-1K at 224×224, ADE20K at 512×2048, "
        "COCO val2017.",
        caption_justify="left",
        caption_style="dim",
    )
    table.add_column("model")
    table.add_column("family")
    for name in ("parameters", "FLOPs", "top-1", "mIoU", "AP"):
        table.add_column(name, justify="right")
    for row in rows:
        flops = "–" if row.flops is None else f"{row.flops / 1e9:.1f} G"
        top1 = "–" if row.top1 is None else f"{row.top1:.1f} %"
        miou = "–" if row.miou is None else f"{row.miou:.1f} %"
        precision = "–" if row.box_ap is None else f"{row.box_ap:.1f} / {row.mask_ap:.1f} %"
        table.add_row(row.name, row.family, f"{row.parameters / 1e6:.1f} M", flops, top1, miou, precision)
    return table
