"""Named models: list them, build them."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError, nearest
from vmamba.models.config import VSSMConfig
from vmamba.models.variants import VARIANTS
from vmamba.models.vssm import VSSM


def list_models(pattern: str = "*") -> list[str]:
    """The names of the models that match a shell pattern, such as ``"*tiny*"``."""
    return fnmatch.filter(VARIANTS, pattern)


def model_config(name: str, **overrides: Any) -> VSSMConfig:
    """The configuration of a named model, some fields changed. Overrides of None keep the model's own value.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
    """
    if name not in VARIANTS:
        raise ConfigError(f"model {name!r} is unknown{nearest(name, VARIANTS)}; `vmamba models` lists all")
    given = {key: value for key, value in overrides.items() if value is not None}
    return VSSMConfig.from_dict({**VARIANTS[name].options, **given})


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
    from vmamba.checkpoints import fetch_official, load_adapted, official_weights

    if pretrained is True:
        pretrained, key = fetch_official(name), key or official_weights(name).key
    model = VSSM(config)
    load_adapted(model, pretrained, key=key)
    return model
