"""Upstream's released weights as trained models: their files say nothing of classes and preprocessing; this does."""

from __future__ import annotations

from pathlib import Path

from vmamba.architecture.config import VSSMConfig
from vmamba.data import Preprocessing, imagenet_class_ids, imagenet_class_names
from vmamba.errors import CheckpointError, nearest
from vmamba.models import VARIANTS
from vmamba.tasks.classification.task import Classification
from vmamba.weights import OFFICIAL, Recognised, WeightFile, fetch_official, recognise

#: As upstream measured them: resized to 256, the middle 224×224, ImageNet's mean and deviation.
PREPROCESSING = Preprocessing(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 224 / 256)


def is_released_name(path: Path) -> bool:
    """Whether ``path`` is no file but a model's name."""
    return not path.exists() and str(path) in VARIANTS


def weights_of_name(path: Path) -> Path:
    """The file of released weights where ``path`` is a model's name, fetched into torch hub's cache; else ``path``.

    Raises:
        CheckpointError: there is neither such a file nor such a name, none were released, or they cannot be had; then
            it says which file to put where.
    """
    if path.exists():
        return path
    if str(path) in VARIANTS:
        return fetch_official(str(path))
    raise CheckpointError(
        f"weight file {path} does not exist, nor is it a model with released weights{nearest(str(path), OFFICIAL)}; "
        "`vmamba weights list` shows those"
    )


def released_task(file: WeightFile, source: Path) -> tuple[Classification, Recognised[VSSMConfig]] | None:
    """ImageNet's task and the network, if these weights fit a model whose weights were released, head included."""
    try:
        found = recognise(file.state_dict, str(source))
    except CheckpointError:
        return None
    if found.name not in OFFICIAL or found.config.num_classes != 1000 or found.config.in_chans != 3:
        return None
    return Classification(imagenet_class_names(), PREPROCESSING, imagenet_class_ids()), found
