"""What a run would use, and where each value comes from: the caller, the run to go on with, a recipe or a default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vmamba.data.preprocessing import Augmentation
from vmamba.train.config import TrainConfig
from vmamba.train.recipe import Recipe
from vmamba.train.resume import decided, flat, given_values, resumed_config
from vmamba.train.run_folder import new_run_folder


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
        named |= {f.name: f"recipe of {dataset}" for f in fields(Recipe)}
        if config.epochs is not None:
            named["warmup_epochs"] += ", at most a quarter of the epochs"
        named["num_workers"] += ", at most one for each core"
        origins |= named
        if config.output is None:
            origins["output"] = f"default: a new folder, now {new_run_folder(whole)}"
        if whole.selective_scan_backend is None:
            origins["selective_scan_backend"] = "default: the fastest that runs"
    origins |= {name: "given" for name, value in given_values(config).items() if value is not None}
    return values, origins
