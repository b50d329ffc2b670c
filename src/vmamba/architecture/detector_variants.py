"""The named detectors as data: Mask R-CNN over each of the named backbones, and what upstream publishes about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.detectors import MaskRCNNConfig
from vmamba.architecture.variants import VARIANTS
from vmamba.errors import ConfigError, nearest


@dataclass(frozen=True)
class PublishedDetector:
    """One released checkpoint, measured by upstream on COCO val2017; average precision over IoU 0.50 to 0.95, percent.

    Attributes:
        schedule: ``"1x"`` (12 epochs), ``"3x"`` (36 epochs, several scales) or ``"1x, batch 8"``.
        url: of the file.
        box_ap: of boxes.
        mask_ap: of masks.
    """

    schedule: str
    url: str
    box_ap: float
    mask_ap: float


@dataclass(frozen=True)
class DetectorVariant:
    """A named detector."""

    family: str
    variant: str  # of the backbone
    options: Mapping[str, Mapping[str, Any]]  # parts of `MaskRCNNConfig`; the backbone's besides the variant's own
    published: PublishedDetector | None = None

    @property
    def config(self) -> MaskRCNNConfig:
        """As it is built."""
        backbone = {**VARIANTS[self.variant].options, **self.options.get("backbone", {})}
        return MaskRCNNConfig.from_dict({**self.options, "backbone": backbone})


_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download"


def _v2(schedule: str, file: str, box_ap: float, mask_ap: float) -> PublishedDetector:
    return PublishedDetector(schedule, f"{_RELEASES}/%23v2det/mask_rcnn_vssm_fpn_coco_{file}.pth", box_ap, mask_ap)


def _v0(schedule: str, file: str, box_ap: float, mask_ap: float) -> PublishedDetector:
    file = f"vssmtiny_mask_rcnn_swin_fpn_coco_{file}"
    return PublishedDetector(schedule, f"{_RELEASES}/%23v0det/{file}.pth", box_ap, mask_ap)


#: By backbone and what stands behind the detector's name.
_PUBLISHED: Mapping[tuple[str, str], PublishedDetector] = {
    ("vmamba_tiny_s1l8", ""): _v2("1x", "tiny_s_epoch_12", 47.3, 42.7),
    ("vmamba_tiny_s1l8", "_3x"): _v2("3x", "tiny_ms_3x_s_epoch_31", 48.8, 43.7),
    ("vmamba_tiny_s2l5", ""): _v2("1x", "tiny_epoch_12", 47.4, 42.7),
    ("vmamba_tiny_s2l5", "_3x"): _v2("3x", "tiny_ms_3x_epoch_36", 48.9, 43.7),
    ("vmamba_small_s2l15", ""): _v2("1x", "small_epoch_11", 48.7, 43.7),
    ("vmamba_small_s2l15", "_3x"): _v2("3x", "small_ms_3x_epoch_32", 49.9, 44.2),
    ("vmamba_base_s2l15", ""): _v2("1x", "base_epoch_11", 49.2, 44.1),
    ("vmamba_base_s2l15", "_bs8"): _v2("1x, batch 8", "base_epoch_12_bs8", 49.2, 43.9),
    ("vanilla_vmamba_tiny", ""): _v0("1x", "epoch_12", 46.5, 42.1),
    ("vanilla_vmamba_tiny", "_3x"): _v0("3x", "ms_3x_epoch_34", 48.5, 43.2),
}

#: Ours, for the smallest backbone: a pyramid and heads in proportion, anchors from 16 pixels on, and half of the
#: regions to learn from are objects, since there are few.
_NANO: Mapping[str, Mapping[str, Any]] = {
    "neck": {"out_channels": 48},
    "rpn": {
        "feat_channels": 48,
        "scales": (4.0,),
        "nms_pre": 300,
        "nms_pre_train": 300,
        "max_per_image": 200,
        "samples": 128,
    },
    "box_head": {"fc_out_channels": 256, "samples": 64, "positive_fraction": 0.5},
    "mask_head": {"conv_out_channels": 48, "num_convs": 2},
}


def _variant(backbone: str, behind: str = "") -> DetectorVariant:
    options = _NANO if backbone == "vmamba_nano" else {}
    return DetectorVariant("mask_rcnn", backbone, options, _PUBLISHED.get((backbone, behind)))


#: ``mask_rcnn_vmamba_tiny_s1l8``, ``mask_rcnn_vanilla_vmamba_tiny``, …; ``_3x`` and ``_bs8`` are the same networks,
#: whose released weights were trained otherwise.
DETECTORS: dict[str, DetectorVariant] = {
    **{f"mask_rcnn_{backbone}": _variant(backbone) for backbone in VARIANTS},
    **{f"mask_rcnn_{backbone}{behind}": _variant(backbone, behind) for backbone, behind in _PUBLISHED if behind},
}


def detector_config(name: str, **overrides: Any) -> MaskRCNNConfig:
    """The configuration of a named detector, changed as `MaskRCNNConfig.replace` does. None keeps the model's own.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
    """
    if name not in DETECTORS:
        raise ConfigError(f"detector {name!r} is unknown{nearest(name, DETECTORS)}; `vmamba models` lists all")
    given = {key: value for key, value in overrides.items() if value is not None}
    return DETECTORS[name].config.replace(**given)
