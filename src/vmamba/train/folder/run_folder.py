"""A run's folder: what lies in it, and how each file is written whole or not at all; `states` has its states."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmamba.data import Augmentation, DataConfig
from vmamba.errors import OutputError
from vmamba.output import check_writable_folder, write_atomically
from vmamba.tasks.protocol import Task
from vmamba.train.folder.states import SavedStates
from vmamba.train.reports.rows import EpochRow, columns
from vmamba.train.settings.config import TrainConfig
from vmamba.train.settings.dotted import flat, nested
from vmamba.typed import typed
from vmamba.version import __version__


class RunFolder(SavedStates):
    """Names all the files of one run, and writes those that are not weights."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        #: What `vmamba.train.loop.replay.replay` needs to compute again a loss that was not finite.
        self.replay = path / "replay.pt"

    def picture(self, name: str) -> Path:
        """Where a picture of the final measurement lies."""
        return self.path / f"{name}.png"

    def write_config(self, config: TrainConfig) -> None:
        """Write ``config.yaml``."""
        import yaml

        head = f"# Resolved configuration of this run, vmamba {__version__}.\n"
        self._write_text(self.config, head + yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))

    def write_metrics(self, rows: Sequence[EpochRow], task: Task) -> None:
        """Write ``metrics.csv``, all rows."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns(task), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.flat() for row in rows)
        self._write_text(self.metrics, text.getvalue())

    def read_config(self) -> TrainConfig:
        """Read ``config.yaml``.

        Raises:
            ConfigError: it is missing, broken, or holds unknown fields.
        """
        return config_from_dict(self.read_settings(), str(self.config))

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


#: By dotted name, what held in runs of before there was a field, where its default is another.
BEFORE: Mapping[str, Any] = {
    "augmentation.shift": 0.0,
    "decay_ssm": False,
    "optimizer": "adamw",
    "schedule": "cosine",
}


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
    """Build a `TrainConfig` from what `TrainConfig.to_dict` gives, or an earlier version's, by dotted name or not.

    Raises:
        ConfigError: an unknown field, or a value of another type.
    """
    checked = typed(TrainConfig, nested({**BEFORE, **flat(values)}), source)
    data, augmentation = DataConfig(**checked.pop("data")), Augmentation(**checked.pop("augmentation"))
    return TrainConfig(data=data, augmentation=augmentation, **checked)


def new_run_folder(config: TrainConfig) -> Path:
    """Choose the folder that a new run will be written to, creating nothing.

    Raises:
        OutputError: it is a file, is not empty, or cannot be written.
    """
    if config.output is not None:
        path = config.output
    else:
        base = Path("runs") / f"{config.model}-{config.data.dataset}-seed{config.seed}"
        path = base
        count = 2
        while path.exists():
            path = base.with_name(f"{base.name}-{count}")
            count += 1
    check_writable_folder(path)
    folder = RunFolder(path)
    if path.is_dir() and any(path.iterdir()) and not folder.is_abandoned():
        known = " (a run: to go on with it, resume it)" if folder.states() else ""
        raise OutputError(f"output folder {path} is not empty{known}; give a new folder or empty this one")
    return path
