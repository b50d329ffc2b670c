"""Segmenters built by name, with fresh or trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmamba.architecture.segmenter_variants import segmenter_config
from vmamba.heads.segmenter import Segmenter, build_segmenter
from vmamba.weights.adaptation import adapt_to, load_backbone_weights
from vmamba.weights.files import read_weights
from vmamba.weights.released import fetch_start
from vmamba.weights.segmenters import holds_segmenter


def create_segmenter(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    key: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> Segmenter:
    """Build a named segmenter, in training mode.

    Args:
        name: such as ``"upernet_vmamba_tiny_s1l8"``, ``"unet_vmamba_nano"`` or ``"fpn_vmamba_tiny_s2l5"``.
        pretrained: False for fresh weights; True for upstream's released ones, which some have; a segmenter's weight
            file; or, for the backbone alone, a classifier's weight file or the name of a classifier whose weights were
            released.
        key: the entry of a training checkpoint to take, see `read_weights`.
        num_classes: 150 if not given. Another number than the weights have leaves the last layers fresh.
        in_chans: image channels, 3 if not given. Weights for another number are adapted, see `adapt_to`.
        **overrides: fields of the backbone's `VSSMConfig`; ``decode_head`` and ``auxiliary_head``, each a dict of what
            changes in it; ``auxiliary_head=False`` leaves that one out.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
        CheckpointError: the weights cannot be had, or do not fit.
        OutputError: the cache cannot be written.
    """
    config = segmenter_config(name, num_classes=num_classes, in_chans=in_chans, **overrides)
    if pretrained is False or pretrained is None:
        return build_segmenter(config)
    start, key = fetch_start(name, pretrained, key)
    model = build_segmenter(config)
    start_from(model, start, key)
    return model


def start_from(model: Segmenter, path: str | Path, key: str | None = None) -> None:
    """Load a weight file into a segmenter: a segmenter's whole, see `adapt_to`; any other network's into the backbone.

    Raises:
        CheckpointError: it cannot be read or does not fit; the model is left as it was.
    """
    source = str(path)
    file = read_weights(path, key)
    if holds_segmenter(file):
        model.load_state_dict(adapt_to(file.state_dict, model, source))
    else:
        load_backbone_weights(model.backbone, file.state_dict, source=source)
