"""Classifiers built by name, with fresh or trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmamba.architecture.variants import model_config
from vmamba.models.vssm import VSSM
from vmamba.weights.adaptation import load_adapted
from vmamba.weights.released import fetch_official, official_weights


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    key: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> VSSM:
    """Build a named classifier, in training mode. `vmamba.create_model` builds the other families' too.

    Args:
        name: one of `VARIANTS`.
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
