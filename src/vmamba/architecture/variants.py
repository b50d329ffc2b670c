"""The named models as data: their options, and what upstream publishes about them."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import ConfigError, nearest


@dataclass(frozen=True)
class Published:
    """Upstream's table entry: ImageNet-1K at 224×224, head included. FLOPs count a multiply-add once."""

    top1: float  # percent
    params_m: float  # million
    flops_g: float  # GFLOPs


@dataclass(frozen=True)
class Variant:
    """A named model."""

    family: str
    options: dict[str, Any]  # VSSMConfig fields
    published: Published | None = None


_VANILLA: dict[str, Any] = {
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": True,
    "forward_type": "v0",
    "mlp_ratio": 0.0,
    "norm_layer": "ln",
    "downsample_version": "v1",
    "patchembed_version": "v1",
}
_S2: dict[str, Any] = {
    "ssm_d_state": 1,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": False,
    "forward_type": "v05_noz",
    "mlp_ratio": 4.0,
    "norm_layer": "ln2d",
    "downsample_version": "v3",
    "patchembed_version": "v2",
}
_S1: dict[str, Any] = {**_S2, "ssm_ratio": 1.0}
_M2: dict[str, Any] = {
    **_S1,
    "ssm_d_state": 64,
    "ssm_act_layer": "gelu",
    "ssm_init": "v2",
    "forward_type": "m0_noz",
    "norm_layer": "ln",
}
_96 = (96, 192, 384, 768)
_128 = (128, 256, 512, 1024)


def _variant(
    family: str,
    base: dict[str, Any],
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    drop_path_rate: float,
    published: tuple[float, float, float] | None = None,
) -> Variant:
    options = {**base, "depths": depths, "dims": dims, "drop_path_rate": drop_path_rate}
    return Variant(family, options, Published(*published) if published else None)


VARIANTS: dict[str, Variant] = {
    "vanilla_vmamba_tiny": _variant("vanilla", _VANILLA, (2, 2, 9, 2), _96, 0.2, (82.2, 23, 5.6)),
    "vanilla_vmamba_small": _variant("vanilla", _VANILLA, (2, 2, 27, 2), _96, 0.3, (83.5, 44, 11.2)),
    "vanilla_vmamba_base": _variant("vanilla", _VANILLA, (2, 2, 27, 2), _128, 0.6, (83.7, 76, 18.0)),
    "vmamba_tiny_s2l5": _variant("s2", _S2, (2, 2, 5, 2), _96, 0.2, (82.5, 31, 4.9)),
    "vmamba_small_s2l15": _variant("s2", _S2, (2, 2, 15, 2), _96, 0.3, (83.6, 50, 8.7)),
    "vmamba_base_s2l15": _variant("s2", _S2, (2, 2, 15, 2), _128, 0.6, (83.9, 89, 15.4)),
    "vmamba_tiny_s1l8": _variant("s1", _S1, (2, 2, 8, 2), _96, 0.2, (82.6, 30, 4.9)),
    "vmamba_small_s1l20": _variant("s1", _S1, (2, 2, 20, 2), _96, 0.3, (83.3, 49, 8.6)),
    "vmamba_base_s1l20": _variant("s1", _S1, (2, 2, 20, 2), _128, 0.5, (83.8, 87, 15.2)),
    # Mamba-2's scan. Upstream publishes neither weights nor figures.
    "vmamba_tiny_m2": _variant("m2", _M2, (2, 2, 4, 2), _96, 0.2),
    "vmamba_small_m2": _variant("m2", _M2, (2, 2, 12, 2), _96, 0.3),
    "vmamba_base_m2": _variant("m2", _M2, (2, 2, 12, 2), _128, 0.3),
    # Ours: small enough to train on a laptop's CPU, with every part of the s1 models.
    "vmamba_nano": _variant("s1", {**_S1, "mlp_ratio": 2.0}, (1, 1, 2, 1), (32, 64, 128, 256), 0.05),
}


def list_models(pattern: str = "*") -> list[str]:
    """The names of the classifiers that match a shell pattern, such as ``"*tiny*"``."""
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
