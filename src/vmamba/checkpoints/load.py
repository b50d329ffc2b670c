"""Loading: strict, every key used and none missing, or a message that lists what does not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.checkpoints.files import WeightFile, pick_state_dict, read_weights
from vmamba.checkpoints.infer import Recognised, recognise
from vmamba.checkpoints.misfits import refuse_misfits
from vmamba.checkpoints.translate import translate_keys
from vmamba.errors import CheckpointError
from vmamba.models.config import VSSMConfig
from vmamba.models.vssm import VSSM

_logger = logging.getLogger("vmamba")


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


def describe(file: WeightFile, source: str) -> Recognised:
    """What a weight file says that it is, in its metadata's ``config``, or else what it is recognised as.

    Raises:
        CheckpointError: the description is broken, or there is none and the weights are no VSSM's.
    """
    own = file.metadata.get("config")
    if own is None:
        return recognise(file.state_dict, source)
    try:
        return Recognised(VSSMConfig.from_dict(json.loads(own)), file.metadata.get("model"), ())
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: the configuration in its metadata cannot be read: {error}") from error


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    key: str | None = None,
    source: str = "the state dict",
) -> None:
    """Load weights strictly: a file or a state dict, in this package's naming or any of upstream's.

    Args:
        model: a `VSSM` or another module with its keys. It is left untouched unless everything fits.
        weights: a ``.safetensors`` or PyTorch file, or a state dict (a whole training checkpoint too).
        key: the entry of a training checkpoint to take, see `read_weights`.
        source: what messages call a state dict.

    Raises:
        CheckpointError: an unreadable file; or missing, unexpected or mis-shaped keys, which it lists.
    """
    source, state_dict = resolve(weights, key, source)
    own = model.state_dict()
    translated = translate_keys(state_dict, own)
    refuse_misfits(source, translated, own)
    model.load_state_dict(translated)


def load_backbone_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, key: str | None = None
) -> None:
    """Load a classification checkpoint into a backbone: strict, but for the classifier and the backbone's own
    ``outnorm``s.

    Raises:
        CheckpointError: as `load_weights`.
    """
    source, state_dict = resolve(weights, key)
    own = model.state_dict()
    translated = {k: v for k, v in translate_keys(state_dict, own).items() if not k.startswith("classifier.")}
    fresh = {k: v for k, v in own.items() if k.startswith("outnorm") and k not in translated}
    refuse_misfits(source, {**fresh, **translated}, own)
    model.load_state_dict({**fresh, **translated})


def resolve(
    weights: str | Path | Mapping[str, Tensor], key: str | None, source: str = "the state dict"
) -> tuple[str, dict[str, Tensor]]:
    """What messages call the weights, and the weights: read from a file, or taken out of a mapping."""
    if isinstance(weights, Mapping):
        return source, pick_state_dict(weights, key, source)
    return str(weights), read_weights(weights, key).state_dict
