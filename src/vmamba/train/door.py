"""What a call of `vmamba.train` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.data import Augmentation
from vmamba.tasks.keywords import as_data, from_keywords
from vmamba.tasks.registry import DEFAULT, task_type
from vmamba.tasks.run_files import trained_on
from vmamba.train.config import TrainConfig
from vmamba.train.recipe_files import recipe_dataset
from vmamba.train.run import TrainResult, train

if TYPE_CHECKING:
    from rich.console import Console

#: What messages call it.
SOURCE = "vmamba.train"


def train_by_keywords(data: Any, augmentation: Any, console: Console | None, fields: Mapping[str, Any]) -> TrainResult:
    """See `vmamba.train`."""
    return train(config_of(data, augmentation, fields), console)


def config_of(data: Any, augmentation: Any, fields: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a call's arguments make; None is left out.

    Raises:
        ConfigError: they do not make one.
    """
    groups: dict[str, Any] = {}
    if data is not None:
        task = fields.get("task", DEFAULT)
        dataset, own_images = None, task_type(task).own_images
        if fields.get("resume") is not None:
            own = trained_on(Path(fields["resume"]))
            dataset = None if own is None else own.dataset
        elif fields.get("recipe") is not None:
            dataset = recipe_dataset(str(fields["recipe"]))
        groups["data"] = as_data(data, SOURCE, dataset, own_images)
    if isinstance(augmentation, Mapping):
        groups["augmentation"] = from_keywords(Augmentation, augmentation, f"{SOURCE}'s augmentation")
    elif augmentation is not None:
        groups["augmentation"] = augmentation
    return from_keywords(TrainConfig, {**fields, **groups}, SOURCE)
