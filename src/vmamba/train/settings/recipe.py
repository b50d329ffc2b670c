"""Training settings that suit a data set, one file for each under ``recipes/datasets/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from vmamba.errors import ConfigError
from vmamba.typed import typed


@dataclass(frozen=True)
class Recipe:
    """What stands where a training configuration leaves that field at None.

    The fields that have a value here are for data sets that want more than rates and lengths; they hold for a training
    that names no recipe of its own, ``task_options`` option by option.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: int
    label_smoothing: float
    clip_grad: float
    ema_decay: float
    mixup: float
    cutmix: float
    drop_path_rate: float
    num_workers: int
    select_by: str
    schedule: Literal["cosine", "poly"] = "cosine"
    optimizer: Literal["adamw", "muon"] = "adamw"
    epoch_updates: int | None = None
    warmup_updates: int | None = None
    image_size: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)


@cache
def recipe_for(dataset: str, task: str | None = None) -> Recipe:
    """The recipe of a data set of `vmamba.data.DATASETS`, and of a task, where that has one of its own for it.

    Raises:
        ConfigError: there is none, or its file does not hold exactly the fields of a `Recipe`.
    """
    import yaml

    folder = files("vmamba.train") / "recipes" / "datasets"
    own = folder / f"{dataset}_{task}.yaml"
    file = own if own.is_file() else folder / f"{dataset}.yaml"
    if not file.is_file():
        raise ConfigError(f"dataset={dataset!r} has no recipe: {file} is missing; install the package again")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file} holds a {type(values).__name__}, want a mapping of fields")
    return Recipe(**typed(Recipe, values, str(file)))
