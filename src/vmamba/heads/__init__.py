"""Decoders: networks that give every pixel a class, or find objects with their boxes and masks."""

from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.heads.losses import segmentation_loss
from vmamba.heads.mask_rcnn import MaskRCNN
from vmamba.heads.protocol import SegmentationModel
from vmamba.heads.segmenter import Segmenter, UPerNet, build_segmenter
from vmamba.heads.unet3d import UNet3D

__all__ = [
    "MaskRCNN",
    "SegmentationModel",
    "Segmenter",
    "SegmenterConfig",
    "UNet3D",
    "UPerNet",
    "build_segmenter",
    "segmentation_loss",
]
