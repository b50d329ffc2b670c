"""Upstream's released segmenters as trained models: what their files do not say of ADE20K and of image sizes."""

from __future__ import annotations

from vmamba.data import Preprocessing
from vmamba.data.segmentation.classes import ade20k_classes
from vmamba.data.segmentation.masks import IGNORE, MaskFormat
from vmamba.tasks.segmentation.options import InferenceOptions
from vmamba.tasks.segmentation.task import Segmentation

#: Upstream writes mean and deviation on the scale from 0 to 255.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: Longest and shortest side that images are resized to fit into.
BOX = (2048, 512)
CROP = 512


def ade20k_task() -> Segmentation:
    """As upstream measured its models: images fitted into 2048×512, whole, one scale; 0 in masks ignored."""
    mean, std = (tuple(value / 255 for value in values) for values in (_MEAN, _STD))
    preprocessing = Preprocessing(CROP, 3, mean, std, "bilinear")
    masks = MaskFormat(150, IGNORE, reduce_zero_label=True)
    return Segmentation(ade20k_classes(), preprocessing, masks, InferenceOptions(resize=BOX))
