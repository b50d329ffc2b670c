"""Mask R-CNN: the official COCO detectors, on torchvision's region pooling and suppression."""

from vmamba.heads.mask_rcnn.dense import DensePart
from vmamba.heads.mask_rcnn.losses import Truth
from vmamba.heads.mask_rcnn.model import Detections, MaskRCNN
from vmamba.heads.mask_rcnn.preparation import ImageBatch, prepare

__all__ = ["DensePart", "Detections", "ImageBatch", "MaskRCNN", "Truth", "prepare"]
