"""Upstream's released weights as trained models: their files say nothing of classes and preprocessing; this does."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vmamba.architecture.detector_variants import DETECTORS
from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.data import Preprocessing, imagenet_class_ids, imagenet_class_names
from vmamba.errors import CheckpointError, nearest
from vmamba.heads import MaskRCNN, build_segmenter
from vmamba.models import VARIANTS, VSSM
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.detection.released import coco_task
from vmamba.tasks.protocol import Task
from vmamba.tasks.segmentation.released import ade20k_task
from vmamba.weights import OFFICIAL, WeightFile, fetch_official, recognise
from vmamba.weights.detectors import holds_detector, recognise_detector
from vmamba.weights.segmenters import holds_segmenter, recognise_segmenter

#: As upstream measured them: resized to 256, the middle 224×224, ImageNet's mean and deviation.
PREPROCESSING = Preprocessing(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 224 / 256)


def is_released_name(path: Path) -> bool:
    """Whether ``path`` is no file but a model's name."""
    return not path.exists() and str(path) in {**VARIANTS, **SEGMENTERS, **DETECTORS}


def weights_of_name(path: Path) -> Path:
    """The file of released weights where ``path`` is a model's name, fetched into torch hub's cache; else ``path``.

    Raises:
        CheckpointError: there is neither such a file nor such a name, none were released, or they cannot be had; then
            it says which file to put where.
    """
    if path.exists():
        return path
    if is_released_name(path):
        return fetch_official(str(path))
    raise CheckpointError(
        f"weight file {path} does not exist, nor is it a model with released weights{nearest(str(path), OFFICIAL)}; "
        "`vmamba weights list` shows those"
    )


def released_task(file: WeightFile, source: Path) -> tuple[Task, nn.Module, str] | None:
    """The task, the network, still with fresh weights, and its name, if these weights fit a model whose weights were
    released, with all its classes: ImageNet's, ADE20K's or COCO's.
    """
    try:
        if holds_segmenter(file):
            found = recognise_segmenter(file.state_dict, str(source))
            known = found.name in OFFICIAL and found.config.num_classes == 150 and found.config.in_chans == 3
            return (ade20k_task(), build_segmenter(found.config), str(found.name)) if known else None
        if holds_detector(file):
            detector = recognise_detector(file.state_dict, str(source))
            fits = detector.name in OFFICIAL and detector.config.num_classes == 80
            return (coco_task(), MaskRCNN(config=detector.config), str(detector.name)) if fits else None
        classifier = recognise(file.state_dict, str(source))
    except CheckpointError:
        return None
    config = classifier.config
    if classifier.name not in OFFICIAL or config.num_classes != 1000 or config.in_chans != 3:
        return None
    task = Classification(imagenet_class_names(), PREPROCESSING, imagenet_class_ids())
    return task, VSSM(config), str(classifier.name)
