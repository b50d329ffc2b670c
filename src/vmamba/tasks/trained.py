"""A trained model with the task it was trained for: written into a weight or exported file, and read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.architecture.detector_variants import DETECTORS
from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.data import Preprocessing
from vmamba.device import pick_device
from vmamba.errors import CheckpointError, ConfigError
from vmamba.inference.exported import kind_of, open_exported
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.detection.task import Detection
from vmamba.tasks.protocol import Task
from vmamba.tasks.registry import DEFAULT, TASKS
from vmamba.tasks.released import is_released_name, released_task, weights_of_name
from vmamba.tasks.run_files import RunFiles
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.version import __version__
from vmamba.weights import load_weights, read_weights, save_weights

#: Tells our files from others that have metadata too.
FORMAT = "vmamba"


@dataclass(frozen=True)
class Trained:
    """A trained model with everything needed to use it.

    Attributes:
        model: in eval mode, on the CPU, in float32; from the task's inputs to its outputs.
        task: what it was trained for.
        weights_path: the file.
        name: the model's.
        released: whether these are upstream's weights for ImageNet, not a run's.
    """

    model: nn.Module
    task: Task
    weights_path: Path
    name: str
    released: bool = False

    @property
    def weights_word(self) -> str:
        """What must be the same for work with these weights to be gone on with."""
        return f"{self.weights_path.resolve()}, {self.weights_path.stat().st_size} bytes"

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to pixels."""
        return self.task.preprocessing


def weight_metadata(name: str, model: nn.Module, task: Task) -> dict[str, str]:
    """What every weight file of ours says about itself; `load_trained` needs nothing else."""
    return {
        "format": FORMAT,
        "vmamba_version": __version__,
        "model": name,
        "task": task.name,
        **task.metadata(model),
    }


def save_trained(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weight file that `load_trained` reads; atomic."""
    save_weights(path, dict(state_dict), dict(metadata))


def load_trained(path: str | Path) -> Trained:
    """Load a trained model from a run's folder (its best weights), a weight file that a run wrote, upstream's released
    weights by a model's name, which are fetched, or a file of theirs.

    Raises:
        CheckpointError: there is no such file, it is broken, or it lacks the description that a run writes into it.
    """
    path = Path(path)
    weights = RunFiles(path).weights if path.is_dir() else weights_of_name(path)
    if path.is_dir() and not weights.is_file():
        raise CheckpointError(f"{path} holds neither best.safetensors nor last.safetensors; is it a run's folder?")
    file = read_weights(weights)
    if file.metadata.get("format") != FORMAT and (known := released_task(file, weights)) is not None:
        task, bare, name = known
        load_weights(bare, file.state_dict, source=str(weights))
        return Trained(bare.eval(), task, weights, name, released=True)
    kind = _task_type(file.metadata, weights)
    if missing := _missing(file.metadata, ("model", "config", *kind.described_by)):
        raise CheckpointError(
            f"{weights} does not say which {_listed(('model', *kind.described_by))} it belongs to (missing: {missing}"
            "); only files written by `vmamba train` and upstream's released ones do. "
            "vmamba.create_model and vmamba.load_weights load bare weights"
        )
    try:
        task = kind.from_metadata(file.metadata)
        model = task.rebuild(file.metadata)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{weights}: its description cannot be read: {error}") from error
    load_weights(model, file.state_dict)
    return Trained(model.eval(), task, weights, file.metadata["model"])


def load_exported(path: Path) -> Trained:
    """Load a file that `vmamba export` wrote, to ONNX, OpenVINO or torch-export; its runtime computes, on the CPU.

    Raises:
        ConfigError: the runtime is not installed.
        CheckpointError: the file is missing, broken, or does not say what it was trained for.
    """
    model, metadata = open_exported(path)
    kind = _task_type(metadata, path)
    if missing := _missing(metadata, ("model", *kind.described_by)):
        raise CheckpointError(
            f"{path} does not say which {_listed(kind.described_by)} it belongs to (missing: {missing}); "
            "only files written by `vmamba export` do"
        )
    try:
        task = kind.from_metadata(metadata)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its description cannot be read: {error}; export it again") from error
    return Trained(model, task, path, metadata["model"])


def open_trained(path: Path, device: str) -> tuple[Trained, torch.device]:
    """Load what `load_trained` loads, or a file that `load_exported` does; pick where it computes.

    Raises:
        CheckpointError: there is no such file, it is broken, or it does not say what it was trained for.
        ConfigError: ``device`` is none of this machine, or not the CPU for an exported file.
    """
    kind = kind_of(path)
    if kind is None:
        place = pick_device(device)
        return load_trained(path), place
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device!r}: {path} runs in {kind.runtime}, on the CPU; give device=cpu or auto")
    return load_exported(path), torch.device("cpu")


def own_images_of(weights: Path) -> str:
    """The data set that a folder of images to measure these weights on is, where none is named; fetches nothing.

    Raises:
        CheckpointError: as `open_trained`.
    """
    if is_released_name(weights):
        name = str(weights)
        released = Segmentation if name in SEGMENTERS else Detection if name in DETECTORS else Classification
        return released.own_images
    return open_trained(weights, "cpu")[0].task.own_images


def _task_type(metadata: Mapping[str, str], path: Path) -> type[Task]:
    ours = metadata.get("format") == FORMAT
    name = metadata.get("task", DEFAULT) if ours else DEFAULT
    if name not in TASKS:
        raise CheckpointError(
            f"{path} was trained for the task {name!r}, which vmamba {__version__} does not know; "
            f"it knows {', '.join(TASKS)}"
        )
    return TASKS[name]


def _missing(metadata: Mapping[str, str], needed: tuple[str, ...]) -> str:
    """The needed entries that are not there; empty if the file is one of ours and complete."""
    missing = [name for name in needed if name not in metadata]
    return ", ".join(missing) or ("format" if metadata.get("format") != FORMAT else "")


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
