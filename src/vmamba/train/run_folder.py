"""A run's folder: what lies in it, and how each file is written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vmamba.data import Augmentation, DataConfig
from vmamba.errors import CheckpointError, OutputError
from vmamba.output import check_writable_folder, sync_folder, write_atomically
from vmamba.tasks.protocol import Task
from vmamba.tasks.run_files import RunFiles, typed
from vmamba.train.config import TrainConfig
from vmamba.train.rows import EpochRow, columns
from vmamba.version import __version__
from vmamba.weights.download.fingerprint import sha256_of


class RunFolder(RunFiles):
    """Names all the files of one run, and writes those that are not weights."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        self.state = path / "state.pt"
        #: Better weights than ``best``, of an epoch that no state knows yet.
        self.next_best = path / "best.next.safetensors"

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

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write ``state.pt``; tensors and plain values only, so that it can be read without running code."""
        write_atomically(self.state, lambda temporary: torch.save(dict(state), temporary))

    def commit(self, state: Mapping[str, Any]) -> None:
        """Write ``state.pt``, which names the best weights by their SHA-256, and put these in their place.

        The state is the moment that counts: before it the old state and the old best weights hold, after it the new.
        """
        staged = self.next_best.is_file()
        best = self.next_best if staged else self.best
        self.write_state({**state, "best_sha256": sha256_of(best) if best.is_file() else None})
        if staged:
            sync_folder(self.path)
            self._take_next_best()

    def settle(self, state: Mapping[str, Any]) -> None:
        """Undo or finish what a `commit` was stopped in.

        Raises:
            CheckpointError: the best weights that ``state`` names are not there.
        """
        wanted = state["best_sha256"]
        if wanted is not None and not (self.best.is_file() and sha256_of(self.best) == wanted):
            if self.next_best.is_file() and sha256_of(self.next_best) == wanted:
                self._take_next_best()
            else:
                fault = "is not the file that state.pt names" if self.best.is_file() else "is missing"
                raise CheckpointError(f"{self.best} {fault}; without it the run cannot be resumed")
        self.next_best.unlink(missing_ok=True)

    def _take_next_best(self) -> None:
        try:
            os.replace(self.next_best, self.best)
        except OSError as error:
            raise OutputError(f"cannot write {self.best}: {error.strerror}; resume the run elsewhere") from error

    def read_state(self) -> dict[str, Any]:
        """Read ``state.pt``.

        Raises:
            CheckpointError: it is missing or broken.
        """
        if not self.state.is_file():
            raise CheckpointError(f"{self.path} has no state.pt, so it cannot be resumed; is it a run's folder?")
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a broken file
            raise CheckpointError(f"{self.state} cannot be read ({str(error).splitlines()[0]})") from error
        return state

    def read_config(self) -> TrainConfig:
        """Read ``config.yaml``.

        Raises:
            ConfigError: it is missing, broken, or holds unknown fields.
        """
        return config_from_dict(self.read_settings(), str(self.config))

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


#: What held in runs of before there was a field, where its default is another.
BEFORE: Mapping[str, Any] = {"decay_ssm": False}


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
    """Build a `TrainConfig` from what `TrainConfig.to_dict` gives, or an earlier version's.

    Raises:
        ConfigError: an unknown field, or a value of another type.
    """
    checked = typed(TrainConfig, {**BEFORE, **values}, source)
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
    if path.is_dir() and any(path.iterdir()):
        known = " (a run: to go on with it, resume it)" if RunFolder(path).state.exists() else ""
        raise OutputError(f"output folder {path} is not empty{known}; give a new folder or empty this one")
    return path
