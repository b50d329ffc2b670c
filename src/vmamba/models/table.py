"""The named models as a table: size counted here, published figures quoted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vmamba.architecture.variants import VARIANTS
from vmamba.errors import ConfigError, nearest
from vmamba.models import create_model, list_models

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ModelRow:
    """One model. ``flops`` and ``top1`` are what upstream published for ImageNet-1K at 224×224, where it did."""

    name: str
    family: str
    parameters: int  # counted, with 1000 classes
    flops: float | None  # multiply-adds
    top1: float | None  # percent

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def model_rows(pattern: str = "*") -> list[ModelRow]:
    """The models whose names match a shell pattern, or hold ``pattern`` where it has no ``*``, ``?`` or ``[``.

    Raises:
        ConfigError: no model matches.
    """
    names = list_models(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")
    if not names:
        raise ConfigError(f"no model's name matches {pattern!r}{nearest(pattern, VARIANTS)}; `vmamba models` lists all")
    return [_row(name) for name in names]


def _row(name: str) -> ModelRow:
    with torch.device("meta"):  # shapes without memory
        model = create_model(name)
    published = VARIANTS[name].published
    return ModelRow(
        name=name,
        family=VARIANTS[name].family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=None if published is None else published.flops_g * 1e9,
        top1=None if published is None else published.top1,
    )


def models_table(rows: list[ModelRow]) -> Table:
    """The rows as they are printed."""
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        caption="Parameters are counted with 1000 classes. FLOPs and top-1: upstream's published figures, "
        "ImageNet-1K, 224×224.",
        caption_justify="left",
        caption_style="dim",
    )
    table.add_column("model")
    table.add_column("family")
    for name in ("parameters", "FLOPs", "top-1"):
        table.add_column(name, justify="right")
    for row in rows:
        flops = "–" if row.flops is None else f"{row.flops / 1e9:.1f} G"
        top1 = "–" if row.top1 is None else f"{row.top1:.1f} %"
        table.add_row(row.name, row.family, f"{row.parameters / 1e6:.1f} M", flops, top1)
    return table
