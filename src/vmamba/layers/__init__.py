"""Neural-network layers over channels-last maps."""

from vmamba.layers.basic import Pointwise
from vmamba.layers.forward_type import ForwardType
from vmamba.layers.mlp import GatedMlp, Mlp
from vmamba.layers.norm import BatchNorm, LayerNorm, LayerNorm2d
from vmamba.layers.ss1d import SS1D, SS1DState
from vmamba.layers.ss2d import SS2D
from vmamba.layers.ss3d import SS3D
from vmamba.layers.vss_block import VSSBlock
from vmamba.layers.vss_block3d import VSSBlock3D

__all__ = [
    "SS1D",
    "SS2D",
    "SS3D",
    "BatchNorm",
    "ForwardType",
    "GatedMlp",
    "LayerNorm",
    "LayerNorm2d",
    "Mlp",
    "Pointwise",
    "SS1DState",
    "VSSBlock",
    "VSSBlock3D",
]
