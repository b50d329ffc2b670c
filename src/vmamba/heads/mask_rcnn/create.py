"""Detectors built by name, with fresh or trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmamba.architecture.detector_variants import detector_config
from vmamba.heads.mask_rcnn.model import MaskRCNN
from vmamba.weights.adaptation import adapt_to, load_backbone_weights
from vmamba.weights.detectors import holds_detector
from vmamba.weights.files import read_weights
from vmamba.weights.names import translate_keys
from vmamba.weights.refusal import DETECTOR_CLASS_LAYERS
from vmamba.weights.released import fetch_start

#: How the names of weights begin whose size is the number of classes.
LAST = tuple(f"{layer}." for layer in DETECTOR_CLASS_LAYERS)


def create_detector(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    key: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> MaskRCNN:
    """Build a named detector, in training mode.

    Args:
        name: such as ``"mask_rcnn_vmamba_tiny_s1l8"``.
        pretrained: False for fresh weights; True for upstream's released ones, which some have; a detector's weight
            file; or, for the backbone alone, a classifier's weight file or the name of a classifier whose weights were
            released.
        key: the entry of a training checkpoint to take, see `read_weights`.
        num_classes: 80 if not given. Another number than the weights have leaves the last layers fresh.
        in_chans: image channels, 3 if not given. Weights for another number are adapted, see `adapt_to`.
        **overrides: as `MaskRCNNConfig.replace` takes them: fields of the backbone's `VSSMConfig`; ``neck``, ``rpn``,
            ``box_head`` and ``mask_head``, each a dict of what changes in it.

    Raises:
        ConfigError: an unknown model (with the nearest names) or option, or an illegal value.
        CheckpointError: the weights cannot be had, or do not fit.
        OutputError: the cache cannot be written.
    """
    config = detector_config(name, num_classes=num_classes, in_chans=in_chans, **overrides)
    if pretrained is False or pretrained is None:
        return MaskRCNN(config=config)
    start, key = fetch_start(name, pretrained, key)
    model = MaskRCNN(config=config)
    source = str(start)
    file = read_weights(start, key)
    if holds_detector(file):
        own = model.state_dict()
        given = translate_keys(file.state_dict, own)
        # The layers that give classes their scores, boxes and masks: fresh where there are others.
        fresh = [
            name for name in own if name.startswith(LAST) and name in given and given[name].shape != own[name].shape
        ]
        given |= {name: own[name] for name in own if fresh and name.startswith(LAST)}
        model.load_state_dict(adapt_to(given, model, source))
    else:
        load_backbone_weights(model.backbone, file.state_dict, source=source)
    return model
