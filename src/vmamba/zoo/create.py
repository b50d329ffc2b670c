"""Networks of every family: by name, with fresh or trained weights, and from a weight file alone."""

from __future__ import annotations

import fnmatch
import logging
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import ConfigError
from vmamba.weights.files import read_weights
from vmamba.weights.loading import load_weights
from vmamba.zoo.families import FAMILIES, family_of, family_of_file, names

_logger = logging.getLogger("vmamba")


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """The names of the models that match a shell pattern, such as ``"*tiny*"``.

    Args:
        pattern: of the names.
        task: ``"classification"``, ``"segmentation"`` or ``"detection"``; None for all.

    Raises:
        ConfigError: an unknown task.
    """
    tasks = [family.task for family in FAMILIES if family.variants]
    if task is not None and task not in tasks:
        raise ConfigError(f"task {task!r} is unknown; legal: {', '.join(tasks)}")
    return fnmatch.filter([name for name, family in names().items() if task in (None, family.task)], pattern)


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    key: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> Any:
    """Build a named model, in training mode: a `VSSM`, a segmenter (`vmamba.UPerNet`,
    `vmamba.heads.Segmenter`) or a detector (`vmamba.MaskRCNN`).

    Args:
        name: one of `list_models`.
        pretrained: False for fresh weights; True for upstream's released ones, downloaded into torch hub's cache at the
            first use; or a weight file. The backbone of a segmenter or detector also starts from a classifier's
            file, or from a classifier's name, whose released weights are fetched.
        key: the entry of a training checkpoint to take, such as ``"model_ema"``; by default what upstream's loader
            takes.
        num_classes: 1000 of a classifier, 150 of a segmenter, 80 of a detector if not given; 0 leaves a
            classifier's head out. Another number than the weights have leaves the last layer fresh.
        in_chans: image channels, 3 if not given. Weights for another number are adapted, see `adapt_to`.
        **overrides: other fields of `VSSMConfig`; for a segmenter those of its backbone, and ``decode_head`` and
            ``auxiliary_head``, each a dict of what changes in it (``auxiliary_head=False`` leaves that one out); for a
            detector ``neck``, ``rpn``, ``box_head`` and ``mask_head``. With
            ``pretrained`` all weights but the last layer must still fit.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
        BackendError: an unknown ``selective_scan_backend``.
        CheckpointError: the weights cannot be had, or do not fit.
        OutputError: the cache cannot be written.
    """
    create = family_of(name).create
    assert create is not None  # there is a name
    return create(name, pretrained=pretrained, key=key, num_classes=num_classes, in_chans=in_chans, **overrides)


def load(path: str | Path, *, key: str | None = None) -> Any:
    """Build the network that a weight file belongs to, with its weights, ready to use.

    A file that says its own configuration, as those of a training run do, is believed. Any other network is
    recognised by its keys and shapes, see `recognise`: a classifier, a segmenter with a decode head, or a detector. One
    over volumes (`vmamba.UNet3D`, `vmamba.VSSM3D`) must say it.
    What it was taken for is logged to the logger ``vmamba``: a named model as information, another one as a warning
    that lists what had to be assumed.

    Args:
        path: a ``.safetensors`` or PyTorch file.
        key: the entry of a training checkpoint to take, see `read_weights`.

    Returns:
        The model in evaluation mode, on the CPU, in float32. `create_model` builds one to train.

    Raises:
        CheckpointError: an unreadable file, or weights that are no such network's.
    """
    file = read_weights(path, key)
    family = family_of_file(file)
    found = family.describe(file, str(path))
    message = "%s: recognised %s" if found.assumed else "%s says that it is %s"
    _logger.log(logging.WARNING if found.assumed and not found.name else logging.INFO, message, path, found)
    with torch.device("meta"):  # every value will be loaded: none need be drawn first
        model = family.build(found.config)
    model.to_empty(device="cpu")
    load_weights(model, file.state_dict, source=str(path))
    return model.eval()
