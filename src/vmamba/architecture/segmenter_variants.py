"""The named segmenters as data: a decoder over each of the named backbones, and what upstream publishes about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.decoders import DecodeHeadConfig, FCNHeadConfig, FPNConfig, UNetConfig, UPerHeadConfig
from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.architecture.variants import VARIANTS
from vmamba.errors import ConfigError, nearest


@dataclass(frozen=True)
class PublishedSegmenter:
    """Upstream's table entry: ADE20K, images of 512 pixels. FLOPs count a multiply-add once, at 512×2048."""

    miou: float  # percent, one scale
    params_m: float  # million
    flops_g: float


@dataclass(frozen=True)
class SegmenterVariant:
    """A named segmenter."""

    family: str
    variant: str  # of the backbone
    options: Mapping[str, Any]  # of the backbone, besides the variant's own
    decode_head: DecodeHeadConfig
    auxiliary_head: FCNHeadConfig | None
    published: PublishedSegmenter | None = None

    @property
    def config(self) -> SegmenterConfig:
        """As it is built."""
        backbone = VSSMConfig.from_dict({**VARIANTS[self.variant].options, **self.options})
        return SegmenterConfig(backbone, self.decode_head, self.auxiliary_head)


#: Ours for `vmamba_nano`; the other backbones have the heads' defaults.
_NANO: Mapping[str, DecodeHeadConfig] = {
    "upernet": UPerHeadConfig(channels=64),
    "unet": UNetConfig(decoder_channels=(64, 48, 32, 16, 8), stem_channels=8),
    "fpn": FPNConfig(pyramid_channels=64, segmentation_channels=32),
}
#: U-Net's narrow decoder learns late while the backbone's middle maps do not tell classes apart: they have the loss.
_NANO_AUXILIARY: Mapping[str, FCNHeadConfig] = {
    "upernet": FCNHeadConfig(channels=32),
    "unet": FCNHeadConfig(channels=32, in_index=1, dropout_ratio=0.0),
    "fpn": FCNHeadConfig(channels=32),
}
_FULL: Mapping[str, DecodeHeadConfig] = {"upernet": UPerHeadConfig(), "unet": UNetConfig(), "fpn": FPNConfig()}
#: Upstream's segmenters: what it published, and where its configuration differs from the classifier's.
_PUBLISHED = {
    "vmamba_tiny_s1l8": PublishedSegmenter(47.9, 62, 949),
    "vmamba_tiny_s2l5": PublishedSegmenter(48.3, 62, 948),
    "vmamba_small_s2l15": PublishedSegmenter(50.6, 82, 1028),
    "vmamba_base_s2l15": PublishedSegmenter(51.0, 122, 1170),
    "vanilla_vmamba_tiny": PublishedSegmenter(47.3, 55, 964),
}
_OTHER_OPTIONS: Mapping[str, Mapping[str, Any]] = {"vanilla_vmamba_tiny": {"drop_path_rate": 0.3}}


def _variant(family: str, variant: str) -> SegmenterVariant:
    nano = variant == "vmamba_nano"
    auxiliary = None
    if nano:  # under U-Net and FPN too: deep maps learn what is what far sooner with a loss of their own
        auxiliary = _NANO_AUXILIARY[family]
    elif family == "upernet":
        auxiliary = FCNHeadConfig()
    return SegmenterVariant(
        family,
        variant,
        {"imgsize": 256 if nano else 512, **_OTHER_OPTIONS.get(variant, {})},
        (_NANO if nano else _FULL)[family],
        auxiliary,
        _PUBLISHED.get(variant) if family == "upernet" else None,
    )


#: ``upernet_vmamba_tiny_s1l8``, ``unet_vmamba_nano``, …: UPerNet over every named backbone, the others over those that
#: upstream's segmenters have, and the small one.
SEGMENTERS: dict[str, SegmenterVariant] = {
    f"{family}_{variant}": _variant(family, variant)
    for family in _FULL
    for variant in (VARIANTS if family == "upernet" else (*_PUBLISHED, "vmamba_nano"))
}


def segmenter_config(name: str, **overrides: Any) -> SegmenterConfig:
    """The configuration of a named segmenter, changed as `SegmenterConfig.replace` does. None keeps the model's own.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
    """
    if name not in SEGMENTERS:
        raise ConfigError(f"segmenter {name!r} is unknown{nearest(name, SEGMENTERS)}; `vmamba models` lists all")
    given = {key: value for key, value in overrides.items() if value is not None}
    return SEGMENTERS[name].config.replace(**given)
