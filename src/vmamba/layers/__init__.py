"""Neural-network layers over channels-last maps."""

from vmamba.layers.basic import Pointwise
from vmamba.layers.forward_type import ForwardType
from vmamba.layers.mlp import GatedMlp, Mlp
from vmamba.layers.norm import BatchNorm, LayerNorm, LayerNorm2d
from vmamba.layers.ss2d import SS2D
from vmamba.layers.vss_block import VSSBlock

__all__ = [
    "SS2D",
    "BatchNorm",
    "ForwardType",
    "GatedMlp",
    "LayerNorm",
    "LayerNorm2d",
    "Mlp",
    "Pointwise",
    "VSSBlock",
]
