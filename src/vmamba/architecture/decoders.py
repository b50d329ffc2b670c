"""What makes a segmenter's heads, typed and checked. UPerNet's and the auxiliary one have OpenMMLab's words.

Widths of the maps that a head takes, and the number of classes, are no fields: `SegmenterConfig` knows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vmamba.architecture.values import real, switch, whole
from vmamba.errors import ConfigError, nearest

#: OpenMMLab's words that say nothing about the network: how it is trained, and devices. They are taken and left out.
_TRAINING = ("loss_decode", "sampler", "init_cfg", "ignore_index")
#: OpenMMLab's words whose value is built in.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "align_corners": (False,),
    "act_cfg": ({"type": "ReLU"},),
    "conv_cfg": (None,),
    "input_transform": (None, "multiple_select"),
    "out_channels": (None,),
    "threshold": (None,),
    "dilation": (1,),
}


@dataclass(frozen=True)
class HeadConfig:
    """What the heads share: values in canonical form, and the way from and to a dict.

    Attributes:
        dropout_ratio: of whole channels before the last convolution, in training.
    """

    type: ClassVar[str]

    dropout_ratio: float = 0.1

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check them."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), field.default))
        if not 0.0 <= self.dropout_ratio <= 1.0:
            raise ConfigError(f"dropout_ratio {self.dropout_ratio} must lie between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ``type`` among them."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {"type": self.type, **values}


@dataclass(frozen=True)
class UPerHeadConfig(HeadConfig):
    """UPerNet's decode head (arXiv 1807.10221): pyramid pooling and a feature pyramid.

    Attributes:
        channels: of all its maps.
        pool_scales: sides of the pyramid pooling's maps.
    """

    type: ClassVar[str] = "UPerHead"

    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


@dataclass(frozen=True)
class FCNHeadConfig(HeadConfig):
    """A few convolutions on one map (arXiv 1411.4038): the auxiliary head.

    Attributes:
        channels: of its maps.
        in_index: which of the backbone's maps it takes.
        num_convs: convolutions before the classes; 0 takes the map as it is.
        kernel_size: their side.
        concat_input: put the map beside their result, and one convolution more over both.
    """

    type: ClassVar[str] = "FCNHead"

    channels: int = 256
    in_index: int = 2
    num_convs: int = 1
    kernel_size: int = 3
    concat_input: bool = False

    def __post_init__(self) -> None:
        """As the other heads; and what only this one has."""
        super().__post_init__()
        if self.num_convs < 0 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"num_convs {self.num_convs} must not be negative and kernel_size {self.kernel_size} must be odd"
            )


@dataclass(frozen=True)
class UNetConfig(HeadConfig):
    """U-Net's decoder (arXiv 1505.04597), segmentation-models-pytorch's.

    Its last map has few channels, and each pixel's class needs all of them: by default none is dropped, as in
    segmentation-models-pytorch.

    Attributes:
        decoder_channels: of each step up, from the coarsest map to the image's own size.
        stem_channels: of the maps finer than the backbone's first, which a small stem computes from the image.
    """

    type: ClassVar[str] = "UNet"

    dropout_ratio: float = 0.0
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    stem_channels: int = 32


@dataclass(frozen=True)
class FPNConfig(HeadConfig):
    """The feature pyramid's segmentation decoder (arXiv 1901.02446), segmentation-models-pytorch's.

    Attributes:
        pyramid_channels: of the pyramid's maps.
        segmentation_channels: of the maps that are summed; a multiple of 32, the groups of their norms.
    """

    type: ClassVar[str] = "FPN"

    pyramid_channels: int = 256
    segmentation_channels: int = 128

    def __post_init__(self) -> None:
        """As the other heads; and what only this one has."""
        super().__post_init__()
        if self.segmentation_channels % 32:
            raise ConfigError(f"segmentation_channels {self.segmentation_channels} must be a multiple of 32")


DecodeHeadConfig = UPerHeadConfig | UNetConfig | FPNConfig
DECODE_HEADS: Mapping[str, type[DecodeHeadConfig]] = {
    kind.type: kind for kind in (UPerHeadConfig, UNetConfig, FPNConfig)
}


def _typed(name: str, value: object, default: object) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise ConfigError(f"{name} {value!r} is no list of whole numbers")
        values = tuple(whole(name, one) for one in value)
        if not values or min(values) < 1:
            raise ConfigError(f"{name} {values} must be positive, at least one")
        return values
    if isinstance(default, bool):
        return switch(name, value)
    if isinstance(default, float):
        return real(name, value)
    number = whole(name, value)
    if number < 1 and name not in ("in_index", "num_convs"):
        raise ConfigError(f"{name} {number} must be positive")
    return number


@dataclass(frozen=True)
class ReadHead:
    """A head's dict, read.

    Attributes:
        values: the fields of its configuration.
        type: its name, or None.
        in_channels: of the maps it takes, or None where the dict does not say.
        in_index: which maps it takes, where it takes several; or None.
        num_classes: or None.
    """

    values: dict[str, Any]
    type: str | None
    in_channels: tuple[int, ...] | None
    in_index: tuple[int, ...] | None
    num_classes: int | None


def read_head(name: str, given: object, fields: Iterable[str]) -> ReadHead:
    """Sort a head's dict, as OpenMMLab's configuration files have it, into what makes the network and what does not.

    Args:
        name: ``"decode_head"`` or ``"auxiliary_head"``, for messages.
        given: the dict.
        fields: of the head's configuration.

    Raises:
        ConfigError: no dict, an unknown word, or a value that is not built here.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} {given!r} is no dict of the head's options")
    rest = {word: value for word, value in given.items() if word not in _TRAINING}
    kind = rest.pop("type", None)
    in_channels, classes = rest.pop("in_channels", None), rest.pop("num_classes", None)
    index, several = rest.get("in_index"), None
    if isinstance(index, (list, tuple)) and len(index) == 1:
        rest["in_index"] = index[0]
    elif isinstance(index, (list, tuple)):
        several = _several("in_index", rest.pop("in_index"))
    norm = rest.pop("norm_cfg", None)
    if norm is not None and (not isinstance(norm, Mapping) or norm.get("type") not in ("BN", "SyncBN")):
        raise ConfigError(
            f"{name}: norm_cfg {norm!r} is not built here; want type BN or SyncBN, which compute the same"
        )
    for word, legal in _FIXED.items():
        if word in rest and (value := rest.pop(word)) not in legal:
            raise ConfigError(f"{name}: {word} {value!r} is not built here; want {' or '.join(map(repr, legal))}")
    known = tuple(fields)
    for word in rest:
        if word not in known:
            words = (*known, "type", "in_channels", "num_classes", "norm_cfg", *_TRAINING, *_FIXED)
            raise ConfigError(
                f"{name}: {word!r} is not an option of the head{nearest(word, words)}; legal: {', '.join(words)}"
            )
    return ReadHead(
        rest,
        kind,
        None if in_channels is None else _several("in_channels", in_channels),
        several,
        None if classes is None else whole("num_classes", classes),
    )


def _several(name: str, given: object) -> tuple[int, ...]:
    return tuple(whole(name, one) for one in given) if isinstance(given, (list, tuple)) else (whole(name, given),)
