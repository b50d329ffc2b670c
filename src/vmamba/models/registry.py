"""Named models: list them, build them."""

from __future__ import annotations

import fnmatch
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
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> VSSM:
    """Build a named model with fresh weights.

    Args:
        name: one of `list_models`.
        num_classes: classes of the head, 1000 if not given; 0 leaves the head out.
        in_chans: image channels, 3 if not given.
        **overrides: other fields of `VSSMConfig`.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
        BackendError: an unknown ``selective_scan_backend``.
    """
    return VSSM(model_config(name, num_classes=num_classes, in_chans=in_chans, **overrides))
