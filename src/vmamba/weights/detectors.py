"""Which detector a weight file belongs to: what it says, or what names and shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vmamba.architecture.detector_variants import DETECTORS
from vmamba.architecture.detectors import MaskRCNNConfig
from vmamba.errors import CheckpointError
from vmamba.weights.described import said_or_recognised, says_or_holds, shapes_and_backbone
from vmamba.weights.files import WeightFile
from vmamba.weights.misfits import some
from vmamba.weights.recognition import Recognised

_CLASSES = "roi_head.bbox_head.fc_cls.weight"


def holds_detector(file: WeightFile) -> bool:
    """Whether a weight file says that it is a detector's, or has a box head with classes."""
    return says_or_holds(file, "box_head", _CLASSES)


def describe_detector(file: WeightFile, source: str) -> Recognised[MaskRCNNConfig]:
    """What a weight file says that it is, in its metadata's ``config``, or else what it is recognised as.

    Raises:
        CheckpointError: the description is broken, or there is none and the weights are no detector's.
    """
    return said_or_recognised(file, source, MaskRCNNConfig.from_dict, recognise_detector)


def recognise_detector(state_dict: Mapping[str, Tensor], source: str = "the state dict") -> Recognised[MaskRCNNConfig]:
    """Recognise a detector by the names and shapes of its weights, in any of upstream's namings.

    Scales and ratios of anchors, thresholds and what `recognise` lists leave no trace; they are the named detector's,
    or the defaults.

    Args:
        state_dict: the weights. Only names and shapes are read; values may be on the meta device.
        source: what messages call it.

    Raises:
        CheckpointError: they are no detector's, or contradict each other.
    """
    shapes, found = shapes_and_backbone(state_dict, source)
    try:
        parts = _parts(shapes)
        config = MaskRCNNConfig.from_dict({"backbone": found.config.to_dict(), **parts})
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{source} holds no weights that a detector can have ({type(error).__name__}: {error}); "
            f"it has {some(shapes) or 'nothing'}"
        ) from error
    for name, variant in DETECTORS.items():
        if variant.variant == found.name:
            named = variant.config.replace(num_classes=config.num_classes, in_chans=config.backbone.in_chans)
            if _shown(named) == _shown(config):
                return Recognised(named, name, found.assumed)
    return Recognised(config, None, found.assumed)


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """The options of the parts beside the backbone that shapes tell."""
    classes, hidden = shapes[_CLASSES]
    channels = shapes["neck.fpn_convs.0.conv.weight"][0]
    convs = sum(f"roi_head.mask_head.convs.{i}.conv.weight" in shapes for i in range(16))
    area = shapes["roi_head.bbox_head.shared_fcs.0.weight"][1] // channels
    anchors = shapes["rpn_head.rpn_cls.weight"][0]
    if anchors != 3:
        raise ValueError(f"{anchors} anchors a place, whose shapes do not show; build it and load the weights")
    return {
        "neck": {"out_channels": channels},
        "rpn": {"feat_channels": shapes["rpn_head.rpn_conv.weight"][0]},
        "box_head": {"fc_out_channels": hidden, "num_classes": classes - 1, "roi_size": round(area**0.5)},
        "mask_head": {"conv_out_channels": shapes["roi_head.mask_head.conv_logits.weight"][1], "num_convs": convs},
    }


def _shown(config: MaskRCNNConfig) -> tuple[Any, ...]:
    """What shapes tell of a configuration."""
    neck, rpn, box, mask = config.neck, config.rpn, config.box_head, config.mask_head
    return (
        neck.out_channels, rpn.feat_channels, box.fc_out_channels, box.roi_size, box.num_classes,
        mask.conv_out_channels, mask.num_convs,
    )  # fmt: skip
