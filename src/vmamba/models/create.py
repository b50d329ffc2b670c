"""Building networks: by name, with fresh or trained weights, and from a weight file alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from vmamba.architecture.variants import model_config
from vmamba.models.vssm import VSSM
from vmamba.weights.adaptation import load_adapted
from vmamba.weights.files import read_weights
from vmamba.weights.loading import describe, load_weights
from vmamba.weights.released import fetch_official, official_weights

_logger = logging.getLogger("vmamba")


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    key: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> VSSM:
    """Build a named model, in training mode.

    Args:
        name: one of `list_models`.
        pretrained: False for fresh weights; True for upstream's released ones, downloaded into torch hub's cache at the
            first use; or a weight file.
        key: the entry of a training checkpoint to take, such as ``"model_ema"``; by default what upstream's loader
            takes.
        num_classes: classes of the head, 1000 if not given; 0 leaves the head out. Another number than the weights have
            leaves the head fresh.
        in_chans: image channels, 3 if not given. Weights for another number are adapted, see `adapt_to`.
        **overrides: other fields of `VSSMConfig`. With ``pretrained`` all weights but the head must still fit.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
        BackendError: an unknown ``selective_scan_backend``.
        CheckpointError: the weights cannot be had, or do not fit.
        OutputError: the cache cannot be written.
    """
    config = model_config(name, num_classes=num_classes, in_chans=in_chans, **overrides)
    if pretrained is False or pretrained is None:
        return VSSM(config)
    if pretrained is True:
        pretrained, key = fetch_official(name), key or official_weights(name).key
    model = VSSM(config)
    load_adapted(model, pretrained, key=key)
    return model


def load(path: str | Path, *, key: str | None = None) -> VSSM:
    """Build the network that a weight file belongs to, with its weights, ready to classify.

    A file that says its own configuration, as those of a training run do, is believed. Any other network is
    recognised by its keys and shapes, see `recognise`. What it was taken for is logged to the logger ``vmamba``: a
    named model as information, another one as a warning that lists what had to be assumed.

    Args:
        path: a ``.safetensors`` or PyTorch file.
        key: the entry of a training checkpoint to take, see `read_weights`.

    Returns:
        The model in evaluation mode, on the CPU, in float32. `create_model` builds one to train.

    Raises:
        CheckpointError: an unreadable file, or weights that are no VSSM's.
    """
    file = read_weights(path, key)
    found = describe(file, str(path))
    message = "%s: recognised %s" if found.assumed else "%s says that it is %s"
    _logger.log(logging.WARNING if found.assumed and not found.name else logging.INFO, message, path, found)
    with torch.device("meta"):  # every value will be loaded: none need be drawn first
        model = VSSM(found.config)
    model.to_empty(device="cpu")
    load_weights(model, file.state_dict, source=str(path))
    return model.eval()
