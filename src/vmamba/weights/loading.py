"""Loading: strict, every key used and none missing, or a message that lists what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import CheckpointError
from vmamba.weights.described import said_or_recognised
from vmamba.weights.files import WeightFile, pick_state_dict, read_weights
from vmamba.weights.misfits import find_misfits
from vmamba.weights.names import translate_keys
from vmamba.weights.recognition import Recognised, recognise
from vmamba.weights.refusal import HEAD, refuse_misfits


def describe(file: WeightFile, source: str) -> Recognised[VSSMConfig]:
    """What a weight file says that it is, in its metadata's ``config``, or else what it is recognised as.

    Raises:
        CheckpointError: the description is broken, or there is none and the weights are no VSSM's.
    """
    return said_or_recognised(file, source, VSSMConfig.from_stored, recognise)


def config_to_store(
    config: VSSMConfig, state_dict: Mapping[str, Tensor], build: Callable[[VSSMConfig], nn.Module]
) -> VSSMConfig:
    """The configuration to store with a network's weights, which `build` makes such a network of.

    It is the network's own, with the classes of the head that is there: users replace it by hand.

    Raises:
        CheckpointError: something else was changed, so that no configuration describes the network.
    """
    head = state_dict.get(HEAD[0])
    config = config.replace(num_classes=0 if head is None else len(head))
    with torch.device("meta"):
        own = build(config).state_dict()
    if misfits := find_misfits(state_dict, own):
        raise CheckpointError(
            f"the network is no longer what its configuration says ({misfits}), so that nothing could rebuild it; "
            "vmamba.save_weights writes the weights alone"
        )
    return config


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


def resolve(
    weights: str | Path | Mapping[str, Tensor], key: str | None, source: str = "the state dict"
) -> tuple[str, dict[str, Tensor]]:
    """What messages call the weights, and the weights: read from a file, or taken out of a mapping."""
    if isinstance(weights, Mapping):
        return source, pick_state_dict(weights, key, source)
    if not str(weights):
        raise CheckpointError("the name of the weight file is empty; give a file, or None for fresh weights")
    return str(weights), read_weights(weights, key).state_dict
