"""Where a run's figures go besides ``metrics.csv``: TensorBoard, and whatever else accelerate has a tracker for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError, nearest
from vmamba.train.reports.rows import EpochRow
from vmamba.train.settings.config import TrainConfig
from vmamba.train.settings.dotted import flat

#: The folder, inside a run's, of trackers that write files; one inside it has the project's name.
FOLDER = "logs"

#: What trackers call the project.
PROJECT = "vmamba"

#: Where the package to install is not called as the tracker is.
_PACKAGES = {"comet_ml": "comet-ml"}


def tracker_names(trackers: str | None) -> list[str]:
    """The names in a configuration's ``trackers``, each one that can be used here.

    Raises:
        ConfigError: accelerate has no such tracker, or the tracker's package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    wanted = list(dict.fromkeys(name.strip() for name in (trackers or "").split(",") if name.strip()))
    legal = [str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS]
    present = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in wanted:
        if name not in legal:
            hint = nearest(name, legal)
            raise ConfigError(f"trackers={trackers!r}: {name!r} is unknown; legal: {', '.join(legal)}{hint}")
        if name not in present and _has_package(name):
            mend = f"`pip install {_PACKAGES.get(name, name)}`, or leave it out"
            raise ConfigError(f"trackers={trackers!r}: {name} is not installed: {mend}")
    return wanted


def _has_package(name: str) -> bool:
    """Whether accelerate knows it by itself; one that somebody registered needs nothing that is known here."""
    from accelerate.utils import LoggerType

    return name in [str(kind.value) for kind in LoggerType]


class Trackers:
    """Hands a run's figures to the trackers that the accelerator was made with. Only the main process tells them.

    Args:
        accelerator: made with `tracker_names`.
        steps: of an epoch; the axis is steps since the run's start.
    """

    def __init__(self, accelerator: Any, steps: int) -> None:
        self.accelerator = accelerator
        self.steps = steps
        self.on = bool(accelerator.log_with)

    def start(self, folder: Path, config: TrainConfig) -> None:
        """Begin, in the run's folder, with its configuration."""
        if self.on:
            self.accelerator.project_configuration.logging_dir = str(folder / FOLDER)
            words = {name: _word(value) for name, value in flat(config.to_dict()).items()}
            self.accelerator.init_trackers(PROJECT, words)

    def step(self, epoch: int, done: int, figures: Mapping[str, float], lr: float, speed: float) -> None:
        """After ``done`` steps of ``epoch`` (from 0): the epoch's running means, learning rate, images a second."""
        if self.on:
            values = {f"step/{name}": value for name, value in figures.items()}
            self.accelerator.log({**values, "step/lr": lr, "step/images_per_second": speed}, epoch * self.steps + done)

    def epoch(self, row: EpochRow) -> None:
        """An epoch's row of ``metrics.csv``."""
        if self.on:
            values = {f"epoch/{name}": value for name, value in row.flat().items() if value is not None}
            self.accelerator.log(values, row.epoch * self.steps)

    def finish(self) -> None:
        """Have everything written."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers.clear()


def _word(value: Any) -> Any:
    """A value as trackers take it: a word where it is neither number nor truth value."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
