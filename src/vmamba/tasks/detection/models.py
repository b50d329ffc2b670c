"""The networks that detect: built by name, described in weight files, started from other weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vmamba.architecture.detector_variants import detector_config
from vmamba.architecture.detectors import MaskRCNNConfig
from vmamba.data import Preprocessing
from vmamba.errors import ConfigError
from vmamba.heads import MaskRCNN
from vmamba.heads.mask_rcnn.create import LAST
from vmamba.models import VARIANTS
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.weights import WeightFile, adapt_to, load_backbone_weights


def create_detector(settings: Settings, classes: int) -> MaskRCNN:
    """The model of a training configuration with fresh weights.

    Raises:
        ConfigError: a model that does not detect.
    """
    check_detector(settings.model, settings.model_options)
    config = detector_config(
        settings.model,
        num_classes=classes,
        drop_path_rate=settings.drop_path_rate,
        selective_scan_backend=settings.selective_scan_backend,
        **{"use_checkpoint": settings.checkpointing, **settings.model_options},
    )
    return MaskRCNN(config=config)


def check_detector(name: str, options: Mapping[str, Any]) -> None:
    """Make sure that there is such a detector.

    Raises:
        ConfigError: an unknown name, a classifier's, or an option that there is not.
    """
    if name in VARIANTS:
        raise ConfigError(f"model={name!r} classifies images; detection needs 'mask_rcnn_{name}'")
    detector_config(name, **options)


def detector_metadata(model: Any, preprocessing: Preprocessing) -> dict[str, str]:
    """A weight file's entries ``config`` and ``preprocessing``."""
    return {"config": json.dumps(model.config.to_dict()), "preprocessing": json.dumps(preprocessing.to_dict())}


def detector_from_metadata(metadata: Mapping[str, str]) -> MaskRCNN:
    """The model that `detector_metadata` describes, with fresh weights. Raises ValueError or TypeError as JSON."""
    return MaskRCNN(config=MaskRCNNConfig.from_dict(json.loads(metadata["config"])))


def detector_parts(model: Any) -> ModelParts:
    """The trunk is the backbone; the head is what looks at regions."""
    return ModelParts(model, model.backbone, model.roi_head)


def adapt_detector(model: Any, weights: WeightFile, names: Sequence[str], source: str) -> dict[str, Tensor]:
    """A state dict for a detector from the weights of another, or of a classifier.

    Of another detector all is taken but the last layers of its heads, and those too if it learnt the same categories.
    Of anything else what the backbone needs is taken.

    Raises:
        CheckpointError: they do not fit.
    """
    own: dict[str, Tensor] = model.state_dict()
    given = weights.state_dict
    if not any(name.startswith("rpn_head.") for name in given):
        trunk = copy.deepcopy(model.backbone)  # the model itself is not to be changed
        load_backbone_weights(trunk, given, source=source)
        return own | {f"backbone.{name}": value for name, value in trunk.state_dict().items()}
    backbone = {name.removeprefix("backbone."): value for name, value in given.items() if name.startswith("backbone.")}
    taken = {f"backbone.{name}": value for name, value in adapt_to(backbone, model.backbone, source).items()}
    heads = [name for name in own if not name.startswith("backbone.")]
    inner = [name for name in heads if not name.startswith(LAST)]
    if all(name in given and given[name].shape == own[name].shape for name in inner):
        taken |= {name: given[name] for name in inner}
        last = [name for name in heads if name.startswith(LAST)]
        same = weights.metadata.get("classes") == json.dumps(list(names), ensure_ascii=False)
        if same and all(name in given and given[name].shape == own[name].shape for name in last):
            taken |= {name: given[name] for name in last}
    return own | taken
