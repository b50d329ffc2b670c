"""What prediction and evaluation need of a model, be it a run, a weight file or an exported ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from vmamba.device import pick_device
from vmamba.errors import ConfigError
from vmamba.train.run_folder import load_trained

if TYPE_CHECKING:
    from vmamba.data import Preprocessing


class Classifier(Protocol):
    """A model in eval mode, on the CPU, with its classes and preprocessing; `Trained` is one."""

    @property
    def model(self) -> nn.Module:
        """Pixels ``(b, in_chans, H, W)`` to logits ``(b, classes)``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the logits' order."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to pixels."""

    @property
    def weights_path(self) -> Path:
        """The file."""

    @property
    def name(self) -> str:
        """The model's."""


def load_classifier(path: Path, device: str) -> tuple[Classifier, torch.device]:
    """Load a run's folder, a run's weight file, or an ONNX file of `vmamba export`; pick where it computes.

    Raises:
        CheckpointError: there is no such file, it is broken, or it does not say its classes and preprocessing.
        ConfigError: ``device`` is none of this machine, or not the CPU for an ONNX file.
    """
    if path.suffix.lower() != ".onnx" or path.is_dir():
        place = pick_device(device)
        return load_trained(path), place
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device!r}: {path} runs in ONNX Runtime, on the CPU; give device=cpu or auto")
    from vmamba.inference.onnx_model import load_onnx

    return load_onnx(path), torch.device("cpu")
