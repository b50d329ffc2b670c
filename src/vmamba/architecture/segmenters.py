"""What makes a segmenter, typed and checked: backbone, heads, classes. It is stored with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.decoders import (
    DECODE_HEADS,
    DecodeHeadConfig,
    FCNHeadConfig,
    ReadHead,
    UPerHeadConfig,
    read_head,
)
from vmamba.architecture.values import whole
from vmamba.errors import ConfigError, nearest

_PARTS = ("backbone", "decode_head", "auxiliary_head")
#: What upstream's configuration files call the backbone.
_BACKBONES = ("MM_VSSM", "Backbone_VSSM")


@dataclass(frozen=True)
class SegmenterConfig:
    """A network that gives every pixel a class: a VMamba backbone, a decode head, and perhaps an auxiliary head.

    Attributes:
        backbone: the network whose stages' maps the heads take; its ``num_classes`` is 0.
        decode_head: UPerNet's, U-Net's or FPN's.
        auxiliary_head: for training; None where there is none.
        num_classes: of both heads.
        out_indices: the stages that the heads take; None stands for all.

    Raises:
        ConfigError: values that do not go together.
    """

    backbone: VSSMConfig
    decode_head: DecodeHeadConfig = dataclasses.field(default_factory=UPerHeadConfig)
    auxiliary_head: FCNHeadConfig | None = None
    num_classes: int = 150
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check them."""
        object.__setattr__(self, "backbone", self.backbone.replace(num_classes=0))
        object.__setattr__(self, "num_classes", whole("num_classes", self.num_classes))
        if self.num_classes < 1:
            raise ConfigError(f"num_classes {self.num_classes} must be at least 1: each pixel gets one")
        stages = range(len(self.backbone.depths))
        given = stages if self.out_indices is None else self.out_indices
        chosen = tuple(whole("out_indices", stage) for stage in given)
        if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= len(stages):
            raise ConfigError(f"out_indices {chosen} must be stages out of 0..{len(stages) - 1}, finest first")
        object.__setattr__(self, "out_indices", chosen)
        index = None if self.auxiliary_head is None else self.auxiliary_head.in_index
        if index is not None and not -len(chosen) <= index < len(chosen):
            raise ConfigError(f"auxiliary_head: in_index {index} must be one of the {len(chosen)} maps")

    @property
    def in_chans(self) -> int:
        """Image channels."""
        return self.backbone.in_chans

    @property
    def imgsize(self) -> int:
        """Side of the images that it is made for; it takes others too."""
        return self.backbone.imgsize

    @property
    def in_channels(self) -> tuple[int, ...]:
        """Of the maps that the decode head takes."""
        assert self.out_indices is not None
        return tuple(self.backbone.dims[stage] for stage in self.out_indices)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmenterConfig:
        """Make a configuration of ``backbone``, ``decode_head`` and perhaps ``auxiliary_head``.

        The dicts are `to_dict`'s, or those of OpenMMLab's configuration files; what in these is about training is left
        out.

        Raises:
            ConfigError: an unknown word, an illegal value, or parts that do not go together.
        """
        for name in values:
            if name not in _PARTS:
                raise ConfigError(
                    f"{name!r} is not a part of a segmenter{nearest(name, _PARTS)}; legal: {', '.join(_PARTS)}"
                )
        for name in _PARTS[:2]:
            if not isinstance(values.get(name), (Mapping, VSSMConfig)):
                raise ConfigError(f"a segmenter needs a {name}, a dict of its options; given {values.get(name)!r}")
        backbone, out_indices = _read_backbone(values["backbone"])
        kind = values["decode_head"].get("type", UPerHeadConfig.type)
        if kind not in DECODE_HEADS:
            raise ConfigError(f"decode_head: type {kind!r} is unknown{nearest(kind, DECODE_HEADS)}; legal: "
                              f"{', '.join(DECODE_HEADS)}")  # fmt: skip
        head = DECODE_HEADS[kind]
        decode = read_head("decode_head", values["decode_head"], _fields(head))
        given = values.get("auxiliary_head")
        auxiliary = None if given is None else read_head("auxiliary_head", given, _fields(FCNHeadConfig))
        if auxiliary is not None and auxiliary.type not in (None, FCNHeadConfig.type):
            raise ConfigError(f"auxiliary_head: type {auxiliary.type!r} is not built here; want {FCNHeadConfig.type}")
        config = cls(
            backbone,
            head(**decode.values),
            None if auxiliary is None else FCNHeadConfig(**auxiliary.values),
            decode.num_classes or 150,
            out_indices,
        )
        config._check_given(decode, auxiliary)
        return config

    def _check_given(self, decode: ReadHead, auxiliary: ReadHead | None) -> None:
        """What the dicts said twice must be the same."""
        wants = [("decode_head", "in_channels", decode.in_channels, self.in_channels)]
        wants.append(("decode_head", "in_index", decode.in_index, tuple(range(len(self.in_channels)))))
        if auxiliary is not None and self.auxiliary_head is not None:
            width = (self.in_channels[self.auxiliary_head.in_index],)
            wants.append(("auxiliary_head", "in_channels", auxiliary.in_channels, width))
            classes = None if auxiliary.num_classes is None else (auxiliary.num_classes,)
            wants.append(("auxiliary_head", "num_classes", classes, (self.num_classes,)))
        for part, word, given, want in wants:
            if given is not None and given != want:
                raise ConfigError(
                    f"{part}: {word} {list(given)} does not go with the other parts, which want {list(want)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The architecture as a JSON-ready dict, as it is stored with weights; `from_dict` takes it."""
        auxiliary = self.auxiliary_head
        assert self.out_indices is not None
        return {
            "backbone": {**self.backbone.to_dict(), "out_indices": list(self.out_indices)},
            "decode_head": {
                **self.decode_head.to_dict(),
                "in_channels": list(self.in_channels),
                "num_classes": self.num_classes,
            },
            "auxiliary_head": auxiliary
            and {
                **auxiliary.to_dict(),
                "in_channels": self.in_channels[auxiliary.in_index],
                "num_classes": self.num_classes,
            },
        }

    def replace(self, **changes: Any) -> SegmenterConfig:
        """A copy with some values changed.

        Args:
            **changes: ``num_classes``; ``decode_head`` and ``auxiliary_head``, each a dict of what changes in it, or
                False to leave the auxiliary head out; every other word is a field of the backbone's `VSSMConfig`.

        Raises:
            ConfigError: an unknown name or an illegal value.
        """
        values = self.to_dict()
        classes = changes.pop("num_classes", self.num_classes)
        for part in _PARTS[1:]:
            if (change := changes.pop(part, None)) is not None and change is not False:
                if not isinstance(change, Mapping):
                    raise ConfigError(f"{part} {change!r} is no dict of options to change")
                values[part] = {**(values[part] or {}), **change}
            elif change is False and part == "auxiliary_head":
                values[part] = None
        backbone = self.backbone.replace(**changes)
        stages = None if len(backbone.depths) != len(self.backbone.depths) else values["backbone"]["out_indices"]
        for part in _PARTS[1:]:
            if values[part] is not None:  # they follow the backbone and the number of classes
                values[part] = {k: v for k, v in values[part].items() if k not in ("in_channels", "num_classes")}
        config = self.from_dict({**values, "backbone": backbone})
        return dataclasses.replace(config, num_classes=classes, out_indices=stages)


def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _read_backbone(given: Mapping[str, Any] | VSSMConfig) -> tuple[VSSMConfig, tuple[int, ...] | None]:
    if isinstance(given, VSSMConfig):
        return given, None
    values = dict(given)
    kind = values.pop("type", _BACKBONES[0])
    if kind not in _BACKBONES:
        raise ConfigError(f"backbone: type {kind!r} is not built here; want {' or '.join(_BACKBONES)}")
    stages = values.pop("out_indices", None)
    return VSSMConfig.from_dict(values), None if stages is None else tuple(stages)
