"""Upstream's released detectors as trained models: what their files do not say of COCO and of image sizes."""

from __future__ import annotations

from vmamba.data import Preprocessing
from vmamba.data.detection.categories import coco_categories
from vmamba.heads.mask_rcnn.preparation import FIT, MEAN, STD
from vmamba.tasks.detection.options import InferenceOptions
from vmamba.tasks.detection.task import Detection


def coco_task() -> Detection:
    """As upstream measured its models: images fitted into 1333×800, 80 categories."""
    mean, std = (tuple(value / 255 for value in values) for values in (MEAN, STD))
    preprocessing = Preprocessing(800, 3, mean, std, "bilinear")
    return Detection(coco_categories(), preprocessing, InferenceOptions(resize=FIT))
