"""Data sets and their preprocessing. Nothing here is imported by ``import vmamba``; heavy libraries load when used."""

from vmamba.data.config import DATASETS, DataConfig
from vmamba.data.imagenet import imagenet_class_ids, imagenet_class_names
from vmamba.data.loading import load_splits
from vmamba.data.preprocessing import NO_AUGMENTATION, Augmentation, Preprocessing
from vmamba.data.reading.images import IMAGE_SUFFIXES, read_image
from vmamba.data.splits import stratified_split
from vmamba.data.types import ArrayImages, LabelledImages, Splits, TransformedImages

__all__ = [
    "DATASETS",
    "IMAGE_SUFFIXES",
    "NO_AUGMENTATION",
    "ArrayImages",
    "Augmentation",
    "DataConfig",
    "LabelledImages",
    "Preprocessing",
    "Splits",
    "TransformedImages",
    "imagenet_class_ids",
    "imagenet_class_names",
    "load_splits",
    "read_image",
    "stratified_split",
]
