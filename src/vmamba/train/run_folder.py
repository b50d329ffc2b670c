"""A run's folder: what lies in it, how each file is written whole or not at all, and how a trained model comes back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.data import Augmentation, DataConfig, Preprocessing
from vmamba.errors import CheckpointError, ConfigError, OutputError
from vmamba.models import VSSM, VSSMConfig
from vmamba.output import check_writable_folder, write_atomically
from vmamba.train.config import TrainConfig
from vmamba.version import __version__
from vmamba.weights import load_weights, read_weights, save_weights

FORMAT = "vmamba"


@dataclass(frozen=True)
class EpochRow:
    """One line of ``metrics.csv``. Losses in nats, accuracies between 0 and 1; validation is of the weights saved."""

    epoch: int  # from 1
    train_loss: float  # with label smoothing and mixing, as it was minimised
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float  # at the epoch's last update
    seconds: float
    images_per_second: float  # in training


class RunFolder:
    """Names and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        self.confusion = path / "confusion.png"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.state = path / "state.pt"

    def write_config(self, config: TrainConfig) -> None:
        """Write ``config.yaml``."""
        import yaml

        head = f"# Resolved configuration of this run, vmamba {__version__}.\n"
        self._write_text(self.config, head + yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))

    def write_metrics(self, rows: Sequence[EpochRow]) -> None:
        """Write ``metrics.csv``, all rows."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(EpochRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        self._write_text(self.metrics, text.getvalue())

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write ``state.pt``; tensors and plain values only, so that it can be read without running code."""
        write_atomically(self.state, lambda temporary: torch.save(dict(state), temporary))

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
        import yaml

        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {self.config}: {error}; is {self.path} a run's folder?") from error
        return config_from_dict(values, str(self.config))

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def config_from_dict(values: object, source: str = "the configuration") -> TrainConfig:
    """Build a `TrainConfig` from what `TrainConfig.to_dict` gives.

    Raises:
        ConfigError: not a mapping, an unknown field, or a value of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} holds a {type(values).__name__}, want a mapping of fields")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "run")
    try:
        checked = parser.parse_object({"run": dict(values)}).run.as_dict()
    except ArgumentError as error:
        raise ConfigError(f"{source}: {error}") from error
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


def weight_metadata(
    model_name: str, config: VSSMConfig, classes: Sequence[str], preprocessing: Preprocessing
) -> dict[str, str]:
    """What every weight file of ours says about itself; `load_trained` needs nothing else."""
    return {
        "format": FORMAT,
        "vmamba_version": __version__,
        "model": model_name,
        "config": json.dumps(config.to_dict()),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing.to_dict()),
    }


def save_trained(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weight file that `load_trained` reads; atomic."""
    save_weights(path, dict(state_dict), dict(metadata))


@dataclass(frozen=True)
class Trained:
    """A trained model with everything needed to use it; ``model`` is in eval mode, on the CPU, in float32."""

    model: VSSM
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights_path: Path
    name: str


def load_trained(path: str | Path) -> Trained:
    """Load a trained model from a run's folder (its best weights) or from one weight file that a run wrote.

    Raises:
        CheckpointError: there is no such file, it is broken, or it lacks the description that a run writes into it.
    """
    path = Path(path)
    weights = path
    if path.is_dir():
        folder = RunFolder(path)
        weights = folder.best if folder.best.is_file() else folder.last
        if not weights.is_file():
            raise CheckpointError(f"{path} holds neither best.safetensors nor last.safetensors; is it a run's folder?")
    file = read_weights(weights)
    meta = file.metadata
    needed = ("model", "config", "classes", "preprocessing")
    missing = [name for name in needed if name not in meta]
    if meta.get("format") != FORMAT or missing:
        raise CheckpointError(
            f"{weights} does not say which model, classes and preprocessing it belongs to (missing: "
            f"{', '.join(missing) or 'format'}); only files written by `vmamba train` do. "
            "vmamba.create_model and vmamba.load_weights load bare weights"
        )
    try:
        config = VSSMConfig.from_stored(json.loads(meta["config"]))
        classes = tuple(json.loads(meta["classes"]))
        preprocessing = Preprocessing.from_dict(json.loads(meta["preprocessing"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{weights}: its description cannot be read: {error}") from error
    model = VSSM(config)
    load_weights(model, file.state_dict)
    return Trained(model.eval(), classes, preprocessing, weights, meta["model"])
