"""Which network over volumes a weight file belongs to: what it says; its shapes do not tell strides and axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import Tensor

from vmamba.architecture.volumes import VolumeConfig
from vmamba.errors import CheckpointError
from vmamba.weights.described import said_or_recognised
from vmamba.weights.files import WeightFile
from vmamba.weights.recognition import Recognised

_STEM = "layers.0.step.conv.weight"


def holds_volume_segmenter(file: WeightFile) -> bool:
    """Whether a weight file is a U-Net's over volumes."""
    return f"encoder.{_STEM}" in file.state_dict


def holds_volume_classifier(file: WeightFile) -> bool:
    """Whether a weight file is a classifier's of volumes."""
    return _STEM in file.state_dict


def describe_volume(file: WeightFile, source: str) -> Recognised[VolumeConfig]:
    """What a weight file says that it is, in its metadata's ``config``.

    Raises:
        CheckpointError: the description is broken, or there is none.
    """
    return said_or_recognised(file, source, VolumeConfig.from_dict, _refuse)


def _refuse(state_dict: Mapping[str, Tensor], source: str) -> NoReturn:
    raise CheckpointError(
        f"{source} is of a network over volumes and does not say which one: strides and scan axes leave no trace in "
        "weights. Build it (vmamba.UNet3D or vmamba.VSSM3D) and load them with load_state_dict; or save them with "
        'save_weights(path, state_dict, {"config": json.dumps(model.config.to_dict())})'
    )
