"""Weights as a start for another task: other classes, other input channels, another image size; all else strict."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.weights.loading import resolve
from vmamba.weights.names import prefix_of, translate_keys
from vmamba.weights.refusal import CLASS_LAYERS, refuse_misfits

_logger = logging.getLogger("vmamba")
#: The convolutions that take the image: a classifier's, a segmenter's, and that of a U-Net's stem.
_INPUTS = ("patch_embed.0.weight", "backbone.patch_embed.0.weight", "decode_head.stem.0.0.conv.weight")
_AUXILIARY = "auxiliary_head."
_STAGE = re.compile(r"^layers\.\d+\.(?:downsample|blocks)\.")


def load_adapted(model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, key: str | None = None) -> None:
    """Load weights into a model that may have another head, other input channels or another ``imgsize``.

    Args:
        model: a `VSSM` or a segmenter. It is left untouched unless everything else fits.
        weights: as in `load_weights`.
        key: the entry of a training checkpoint to take, see `read_weights`.

    Raises:
        CheckpointError: an unreadable file, or weights that do not fit, see `adapt_to`.
    """
    source, state_dict = resolve(weights, key)
    model.load_state_dict(adapt_to(state_dict, model, source))


def load_backbone_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    key: str | None = None,
    source: str = "the state dict",
) -> None:
    """Load a classifier's, segmenter's or detector's checkpoint into a backbone; what the backbone has must be there.

    Left out are the classifier, what stands beside the backbone (``decode_head.``, ``neck.``, …), and stages and norms
    that the backbone was made without. Its own ``outnorm``s stay where the weights have none. Input channels and
    ``pos_embed`` are brought to the model's, see `adapt_to`.

    Args:
        model: a `Backbone_VSSM`. It is left untouched unless everything fits.
        weights, key, source: as in `load_weights`.

    Raises:
        CheckpointError: as `load_weights`.
    """
    source, state_dict = resolve(weights, key, source)
    own = model.state_dict()
    inside = prefix_of(state_dict) != ""
    adapted = {
        name: value
        for name, value in translate_keys(state_dict, own).items()
        if name in own or not _beside_a_backbone(name, own, inside)
    }
    adapt_input(adapted, own)
    adapted |= {name: value for name, value in own.items() if name.startswith("outnorm") and name not in adapted}
    refuse_misfits(source, adapted, own)
    model.load_state_dict(adapted)


def _beside_a_backbone(name: str, own: Mapping[str, Tensor], inside: bool) -> bool:
    """Whether a name that the backbone has not may well be absent there. ``inside``: of a larger module's weights."""
    if name.startswith(("classifier.", "outnorm")):
        return True
    part = _STAGE.match(name)
    if part is None:
        return inside and not name.startswith(("patch_embed.", "pos_embed"))
    return not any(other.startswith(part[0]) for other in own)  # a stage, or step to one, that it was made without


def adapt_to(state_dict: Mapping[str, Tensor], model: nn.Module, source: str = "the state dict") -> dict[str, Tensor]:
    """Return ``state_dict`` as ``model`` can load it strictly.

    - The head: where the model has another number of classes, its own fresh head stays; where it has none, the
      weights' head is left out. Of a segmenter's heads that is the last layer.
    - An auxiliary head that only the weights have is left out; one that only the model has stays fresh.
    - Input channels, as timm adapts its models: one is the sum of the given ones, another number repeats them in turn,
      times given over wanted, so that the sum over channels keeps its size.
    - ``pos_embed`` is resized to the model's grid.
    - Everything else must be there and fit.

    Args:
        state_dict: weights in any of upstream's namings.
        model: a `VSSM` or a segmenter; it is not changed.
        source: what messages call the weights.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped keys besides, which it lists.
    """
    own: dict[str, Tensor] = model.state_dict()
    adapted = translate_keys(state_dict, own)
    _adapt_auxiliary_head(adapted, own)
    for layer in CLASS_LAYERS:
        _adapt_classes(adapted, own, layer)
    adapt_input(adapted, own)
    refuse_misfits(source, adapted, own)
    return adapted


def _adapt_auxiliary_head(adapted: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    there, here = (any(name.startswith(_AUXILIARY) for name in weights) for weights in (adapted, own))
    if there == here:
        return
    whose, fate = ("weights have", "is left out") if there else ("model has", "stays fresh")
    _logger.info("auxiliary head: only the %s one; it %s", whose, fate)
    for name in [name for name in adapted if name.startswith(_AUXILIARY)]:
        del adapted[name]
    adapted |= {name: value for name, value in own.items() if name.startswith(_AUXILIARY)}


def _adapt_classes(adapted: dict[str, Tensor], own: Mapping[str, Tensor], layer: str) -> None:
    names = [f"{layer}.{part}" for part in ("weight", "bias")]
    given, want = (len(weights[names[0]]) if names[0] in weights else 0 for weights in (adapted, own))
    if given == want:
        return
    _logger.info("%s: %d classes in the weights, %d in the model; the model's own stays", layer, given, want)
    for name in names:
        adapted.pop(name, None)
        if name in own:
            adapted[name] = own[name]


def adapt_input(adapted: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Bring the weights of the convolutions that take the image to the channels that ``own`` has, in place."""
    for name in _INPUTS:
        given, want = adapted.get(name), own.get(name)
        if given is None or want is None or given.dim() != 4 or given.shape[1] == want.shape[1]:
            continue
        _logger.info("%s: %d input channels in the weights, %d in the model", name, given.shape[1], want.shape[1])
        adapted[name] = adapt_input_channels(given, want.shape[1])


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Turn a convolution's weight ``(out, c, side, side)`` into one over ``channels``, see `adapt_to`."""
    given = weight.shape[1]
    full = weight if weight.dtype == torch.float64 else weight.float()
    if channels == 1:
        adapted = full.sum(1, keepdim=True)
    else:
        repeated = full.repeat(1, math.ceil(channels / given), 1, 1)[:, :channels]
        adapted = repeated * (given / channels)
    return adapted.to(weight.dtype)
