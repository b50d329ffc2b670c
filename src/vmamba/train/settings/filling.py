"""From what the caller gave to a whole configuration: the recipe's values, then the data set's."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from vmamba.given import given_fields
from vmamba.train.settings.dotted import GROUPS
from vmamba.train.settings.recipe import Recipe
from vmamba.train.settings.recipe_files import read_recipe
from vmamba.typed import typed

if TYPE_CHECKING:
    from vmamba.train.settings.config import TrainConfig

#: Rates that may be given as they are, or for 1024 images an update; the former holds where both are there.
RATES = ("lr", "min_lr", "warmup_lr")

#: Learning rate at the end where none is given.
MIN_LR = 1e-6


def per_1024(rate: str) -> str:
    """The field for a rate that follows the batch."""
    return f"{rate}_per_1024"


def recipe_values(config: TrainConfig) -> dict[str, Any]:
    """What ``config``'s recipe fills in, by dotted name: its values for fields that the caller did not give.

    Raises:
        ConfigError: as `read_recipe`; a field that there is not, or a value of another type.
    """
    if config.recipe is None:
        return {}
    raw = read_recipe(config.recipe)
    checked = typed(type(config), raw, f"recipe {config.recipe}")
    filled: dict[str, Any] = {}
    for name in raw:
        if name in GROUPS:
            part = getattr(config, name)
            filled |= {f"{name}.{key}": checked[name][key] for key in raw[name] if _left_out(part, key)}
        elif _left_out(config, name):
            filled[name] = checked[name]
    for rate in RATES:
        if not _left_out(config, per_1024(rate)):
            filled.pop(rate, None)
    if config.epochs is not None and filled.get("warmup_epochs") is not None:
        filled["warmup_epochs"] = _short_warmup(filled["warmup_epochs"], config.epochs)
    if filled.get("num_workers") is not None:
        filled["num_workers"] = min(filled["num_workers"], _cores())
    return filled


def with_recipe(config: TrainConfig) -> TrainConfig:
    """``config`` with the values of its recipe. A run that is gone on with has them already, as they were then."""
    if config.resume is not None:
        return config
    filled = recipe_values(config)
    changes = {name: value for name, value in filled.items() if "." not in name}
    for group in GROUPS:
        inner = {name.partition(".")[2]: value for name, value in filled.items() if name.startswith(f"{group}.")}
        if inner:
            changes[group] = replace(getattr(config, group), **inner)
    return replace(config, **changes)


def with_defaults(config: TrainConfig) -> TrainConfig:
    """``config`` with what suits its data set in every field that is still None."""
    config = _with_task(config)
    row, recipe = config.data.defaults, config.dataset_recipe
    if config.recipe is None and config.resume is None:
        config = _with_more(config, recipe)
    filled: dict[str, Any] = {
        f.name: getattr(recipe, f.name)
        for f in fields(Recipe)
        if f.name not in MORE and getattr(config, f.name) is None
    }
    if config.lr_per_1024 is not None:
        filled.pop("lr", None)
    if config.optimizer is None:
        filled["optimizer"] = "adamw"  # of recipes that do not say
    if config.min_lr is None and config.min_lr_per_1024 is None:
        filled["min_lr"] = MIN_LR
    if config.warmup_epochs is None:
        filled["warmup_epochs"] = _short_warmup(recipe.warmup_epochs, config.epochs or recipe.epochs)
    if config.num_workers is None:
        filled["num_workers"] = min(recipe.num_workers, _cores())  # more would wait for each other
    data = replace(
        config.data,
        image_size=row.image_size if config.data.image_size is None else config.data.image_size,
        in_chans=row.in_chans if config.data.in_chans is None else config.data.in_chans,
    )
    return replace(config, data=data, augmentation=config.augmentation.resolved(row.augmentation), **filled)


#: A `Recipe`'s fields that another recipe stands for as a whole.
MORE = ("optimizer", "epoch_updates", "warmup_updates", "image_size", "task_options")


def _with_more(config: TrainConfig, recipe: Recipe) -> TrainConfig:
    """``config`` with those of the data set's values that hold where no recipe is named."""
    changes: dict[str, Any] = {"task_options": {**recipe.task_options, **config.task_options}}
    if config.optimizer is None:
        changes["optimizer"] = recipe.optimizer
    if config.epoch_updates is None:
        changes["epoch_updates"] = recipe.epoch_updates
    if config.warmup_epochs is None and config.warmup_updates is None and config.schedule in (None, recipe.schedule):
        changes["warmup_updates"] = recipe.warmup_updates
    if config.data.image_size is None and recipe.image_size is not None:
        changes["data"] = replace(config.data, image_size=recipe.image_size)
    return replace(config, **changes)


def _with_task(config: TrainConfig) -> TrainConfig:
    """``config`` with its task's own model and images where none are named; a run to go on with has both."""
    if config.resume is not None:
        return config
    changes: dict[str, Any] = {}
    if "model" not in given_fields(config):
        changes["model"] = config.learnt.default_model
    if "dataset" not in given_fields(config.data):
        changes["data"] = replace(config.data, dataset=config.learnt.default_dataset)
    return replace(config, **changes)


def rates(config: TrainConfig, processes: int) -> dict[str, float]:
    """The learning rates that follow the number of images an update, as they are in so many processes."""
    images = (config.batch_size or 1) * config.grad_accumulation * processes
    found: dict[str, float] = {}
    for rate in RATES:
        each: float | None = getattr(config, per_1024(rate))
        if getattr(config, rate) is None and each is not None:
            found[rate] = each * images / 1024
    return found


def _left_out(part: Any, name: str) -> bool:
    return name not in given_fields(part) or getattr(part, name) is None


def _short_warmup(epochs: int, whole: int) -> int:
    """A short run keeps three quarters of its epochs for the cosine."""
    return min(epochs, whole // 4)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
