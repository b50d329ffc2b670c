"""Going on with a run: whose settings hold, and what must not have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError, DataError
from vmamba.given import given_fields
from vmamba.train.folder.run_folder import BEFORE, RunFolder, config_from_dict
from vmamba.train.settings.config import AUTO, TrainConfig
from vmamba.train.settings.dotted import GROUPS, flat

#: Fields that may differ from the stored run's: they do not decide what the run is.
FREE = (
    "epochs", "device", "num_workers", "save_every", "save_every_steps", "save_every_minutes", "keep_last", "log_every",
    "skip_nonfinite", "selective_scan_backend", "data.data_dir", "data.verify", "checkpointing", "trackers",
    "process_timeout",
)  # fmt: skip


def decided(given: TrainConfig) -> TrainConfig:
    """``given`` with ``resume=auto`` decided: the run in ``output`` where a state of it was saved, else None."""
    if given.resume != AUTO:
        return given
    assert given.output is not None
    return replace(given, resume=given.output if RunFolder(given.output).states() else None)


def resumed_config(given: TrainConfig) -> TrainConfig:
    """The resolved configuration to go on with: the stored run's, and the free fields that ``given`` names.

    A field counts as given if the caller named it, whether or not its value is the default; None counts as left out.

    Raises:
        ConfigError: ``given`` sets another field to something else than the run had; names each with both values.
    """
    assert given.resume is not None
    if given.output is not None and given.output.resolve() != given.resume.resolve():
        raise ConfigError(
            f"resume={given.resume} and output={given.output}: a run goes on in its own folder; leave output out"
        )
    stored = flat(RunFolder(given.resume).read_config().to_dict())
    merged = dict(stored)
    differing: list[str] = []
    for name, value in given_values(given).items():
        if name in ("output", "resume") or value is None or value == stored.get(name):
            continue
        if name in FREE:
            merged[name] = value
        else:
            differing.append(f"{name} is {stored.get(name)!r} there, {value!r} now")
    if differing:
        raise ConfigError(
            f"cannot resume {given.resume} with other settings: {'; '.join(differing)}. Leave them out to go on with "
            "the run's own, or start a new run"
        )
    config = config_from_dict(merged, str(given.resume))
    return replace(config, output=given.resume, resume=given.resume)


def check_same_data(stored: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with other images.

    Raises:
        DataError: a part differs; names each.
    """
    differing = [f"{k}: {stored.get(k)} then, {now.get(k)} now" for k in now if stored.get(k) != now.get(k)]
    if differing:
        raise DataError(f"cannot resume {folder}: its data have changed. {'; '.join(differing)}. Start a new run")


def deciding_settings(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide what a run is, by dotted name: all but the free ones and where it lies."""
    return {name: value for name, value in flat(config.to_dict()).items() if name not in (*FREE, "output", "resume")}


def check_same_settings(stored: Mapping[str, Any], config: TrainConfig, folder: Path) -> None:
    """Refuse to go on under settings that somebody wrote into the folder's ``config.yaml`` after the start.

    Args:
        stored: `deciding_settings` as the run was started.
        config: what to go on with.
        folder: the run's.

    Raises:
        ConfigError: a deciding field differs; names each.
    """
    now = deciding_settings(config)
    stored = {**deciding_settings(TrainConfig()), **BEFORE, **stored}  # a run of an older version lacks what came since
    differing = [f"{k} was {stored[k]!r}, is {value!r}" for k, value in now.items() if value != stored[k]]
    if differing:
        raise ConfigError(
            f"cannot resume {folder}: its config.yaml has been changed since the run was started: "
            f"{'; '.join(differing)}. Put them back, or start a new run"
        )


def check_epochs(config: TrainConfig, done: int, folder: Path) -> None:
    """Refuse a number of epochs that has already been passed.

    Raises:
        ConfigError: ``config.epochs`` is fewer than the run has done.
    """
    if config.epochs is not None and config.epochs < done:
        raise ConfigError(f"epochs={config.epochs}, but {folder} has done {done}; give {done} or more")


def given_values(config: TrainConfig) -> dict[str, Any]:
    """The plain values of the fields that the caller named, by dotted name, in the order of the fields."""
    inner = {f"{part}.{name}" for part in GROUPS for name in given_fields(getattr(config, part))}
    named = given_fields(config) | inner
    return {name: value for name, value in flat(config.to_dict()).items() if name in named}
