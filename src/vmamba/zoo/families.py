"""The families of networks: one table, which `create_model`, `load` and the commands `models` and `weights` read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vmamba.architecture.detector_variants import DETECTORS, DetectorVariant
from vmamba.architecture.segmenter_variants import SEGMENTERS, SegmenterVariant
from vmamba.architecture.variants import VARIANTS, Variant
from vmamba.errors import ConfigError, nearest
from vmamba.heads.create import create_segmenter
from vmamba.heads.mask_rcnn import MaskRCNN
from vmamba.heads.mask_rcnn.create import create_detector
from vmamba.heads.segmenter import build_segmenter
from vmamba.heads.unet3d import UNet3D
from vmamba.models.create import create_model as create_classifier
from vmamba.models.volumes import VSSM3D
from vmamba.models.vssm import VSSM
from vmamba.weights.detectors import describe_detector, holds_detector
from vmamba.weights.files import WeightFile
from vmamba.weights.loading import describe
from vmamba.weights.recognition import Recognised
from vmamba.weights.segmenters import describe_segmenter, holds_segmenter
from vmamba.weights.volumes import describe_volume, holds_volume_classifier, holds_volume_segmenter


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Attributes:
        task: what they are for.
        variants: the named ones; there may be none.
        holds: whether a weight file is one's.
        describe: what a weight file says that it is, or is recognised as; raises CheckpointError. Its second argument
            is what messages call the file.
        build: the network of a configuration that ``describe`` gave, with fresh weights.
        create: a named one; takes what `vmamba.create_model` takes. None where none is named.
    """

    task: str
    variants: Mapping[str, Variant | SegmenterVariant | DetectorVariant]
    holds: Callable[[WeightFile], bool]
    describe: Callable[[WeightFile, str], Recognised[Any]]
    build: Callable[[Any], nn.Module]
    create: Callable[..., nn.Module] | None


#: Asked in this order whether a file is theirs. The last one takes the rest, and so explains what is wrong with it.
FAMILIES = (
    Family("segmentation", SEGMENTERS, holds_segmenter, describe_segmenter, build_segmenter, create_segmenter),
    Family(
        "detection",
        DETECTORS,
        holds_detector,
        describe_detector,
        lambda config: MaskRCNN(config=config),
        create_detector,
    ),
    Family("segmentation of volumes", {}, holds_volume_segmenter, describe_volume, UNet3D, None),
    Family("classification of volumes", {}, holds_volume_classifier, describe_volume, VSSM3D, None),
    Family("classification", VARIANTS, lambda file: True, describe, VSSM, create_classifier),
)


def names() -> dict[str, Family]:
    """Every named network and its family, classifiers first."""
    return {name: family for family in reversed(FAMILIES) for name in family.variants}


def family_of(name: str) -> Family:
    """The family of a named network.

    Raises:
        ConfigError: there is none of that name.
    """
    known = names()
    if name not in known:
        raise ConfigError(f"model {name!r} is unknown{nearest(name, known)}; `vmamba models` lists all")
    return known[name]


def family_of_file(file: WeightFile) -> Family:
    """The family of the network that a weight file belongs to."""
    return next(family for family in FAMILIES if family.holds(file))
