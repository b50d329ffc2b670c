"""The network that nnU-Net's plans describe, with SS3D blocks in place of the encoder's convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmamba.architecture.volumes import VolumeConfig
from vmamba.errors import ConfigError
from vmamba.heads.unet3d import UNet3D


def unet_of_plans(
    architecture: Mapping[str, Any], in_chans: int, num_classes: int, deep_supervision: bool, **options: Any
) -> UNet3D:
    """Build the U-Net for a configuration of nnU-Net's plans.

    Args:
        architecture: the plans' ``arch_kwargs``, of which ``strides`` and ``features_per_stage`` are taken.
        in_chans: channels of the images.
        num_classes: channels of the logits.
        deep_supervision: give logits for every level of the decoder, as nnU-Net trains.
        **options: other fields of `VolumeConfig`. Without ``depths`` the stages at full resolution have no blocks,
            since maps are largest there, and every other stage has one.

    Raises:
        ConfigError: plans of a 2-d network, or an option that is not legal.
    """
    strides = [tuple(stride) for stride in architecture["strides"]]
    if any(len(stride) != 3 for stride in strides):
        raise ConfigError(f"the plans' strides {strides} are of a 2-d network; plan and train '3d_fullres'")
    depths = [int(max(max(one) for one in strides[: i + 1]) > 1) for i in range(len(strides))]
    config = {"depths": depths, "dims": architecture["features_per_stage"], "strides": strides, **options}
    return UNet3D(
        VolumeConfig.from_dict({**config, "in_chans": in_chans, "num_classes": num_classes}),
        deep_supervision=deep_supervision,
    )
