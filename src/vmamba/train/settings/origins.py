"""What a run would use, and where each value comes from: the caller, the run to go on with, a recipe or a default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vmamba.data.preprocessing import Augmentation
from vmamba.train.folder.resume import decided, given_values, resumed_config
from vmamba.train.folder.run_folder import new_run_folder
from vmamba.train.settings.config import TrainConfig
from vmamba.train.settings.dotted import flat
from vmamba.train.settings.filling import MORE, rates, recipe_values
from vmamba.train.settings.recipe import Recipe
from vmamba.train.settings.recipe_files import recipe_dataset


def explained(config: TrainConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values that a run of ``config`` would use, and by dotted name where each comes from, in a few words.

    Raises:
        ConfigError: ``config`` cannot be used, or not with the run to go on with.
        OutputError: no new run can be written to the folder.
    """
    config = decided(config)
    whole = (resumed_config(config) if config.resume is not None else config).resolved()
    values = whole.to_dict()
    plain = flat(values)
    if config.resume is not None:
        origins = dict.fromkeys(plain, f"run {config.resume}")
    else:
        origins = dict.fromkeys(plain, "default")
        dataset = whole.data.dataset
        named = dict.fromkeys(["data.image_size", "data.in_chans"], f"data set {dataset}")
        named |= {f"augmentation.{f.name}": f"data set {dataset}" for f in fields(Augmentation)}
        named |= dict.fromkeys(_from_recipe_of_data(whole), f"recipe of {dataset}")
        if config.epochs is not None:
            named["warmup_epochs"] += ", at most a quarter of the epochs"
        named["num_workers"] += ", at most one for each core"
        if whole.lr is None:
            now = ", ".join(f"{name} {rate:.3g}" for name, rate in rates(whole, 1).items())
            named["lr"] = f"by lr_per_1024; in one process {now}"
        origins |= named
        origins |= dict.fromkeys(recipe_values(config), f"recipe {config.recipe}")
        if config.output is None:
            origins["output"] = f"default: a new folder, now {new_run_folder(whole)}"
        if whole.selective_scan_backend is None:
            origins["selective_scan_backend"] = "default: the fastest that runs"
    origins |= {name: "given" for name, value in given_values(config).items() if value is not None}
    if config.resume is None and config.recipe is not None:
        # What the command line takes from the recipe before the data are known, see `recipe_dataset`.
        own = recipe_dataset(config.recipe)
        if own == config.data.dataset:
            origins["data.dataset"] = f"recipe {config.recipe}"
    return values, origins


def _from_recipe_of_data(config: TrainConfig) -> list[str]:
    """Dotted names of what the data set's recipe says, given or not."""
    recipe = config.dataset_recipe
    names = [f.name for f in fields(Recipe) if f.name not in MORE]
    if config.recipe is None:
        names += [name for name in ("epoch_updates", "warmup_updates") if getattr(recipe, name) is not None]
        names += ["data.image_size"] if recipe.image_size is not None else []
        names += ["task_options"] if recipe.task_options else []
    return names
