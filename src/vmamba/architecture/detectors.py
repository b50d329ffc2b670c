"""What makes a Mask R-CNN, typed and checked when it is made; stored with its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.values import real, whole
from vmamba.errors import ConfigError, nearest

P = TypeVar("P", bound="Part")


@dataclass(frozen=True)
class Part:
    """The options of one part of the network; a field's default tells its type."""

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check that they are positive."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                    raise ConfigError(f"{field.name} {value!r} is no list")
                one = real if field.name in ("ratios", "scales", "stds") else whole
                typed: Any = tuple(one(field.name, item) for item in value)
                least = min(typed, default=1)
            else:
                typed = least = (real if isinstance(field.default, float) else whole)(field.name, value)
            if least <= 0 and not (field.name in _MAY_BE_ZERO and least == 0):
                raise ConfigError(f"{field.name} {value!r} must be positive")
            if isinstance(field.default, float) and typed > 1:
                raise ConfigError(f"{field.name} {value!r} must not be above 1")
            object.__setattr__(self, field.name, typed)

    @classmethod
    def from_dict(cls: type[P], values: Mapping[str, Any]) -> P:
        """From plain values.

        Raises:
            ConfigError: an unknown name or an illegal value.
        """
        legal = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in legal:
                raise ConfigError(
                    f"{name!r} is not an option of {cls.__name__}{nearest(str(name), legal)}; legal: {', '.join(legal)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` takes them."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_MAY_BE_ZERO = ("num_convs", "score_threshold", "negative_iou", "min_positive_iou")


@dataclass(frozen=True)
class NeckConfig(Part):
    """The feature pyramid.

    Attributes:
        in_channels: of the backbone's maps, fine to coarse; empty: as the backbone has them.
        out_channels: of every level.
        num_outs: levels; those beyond the backbone's maps are subsampled from the last.
    """

    in_channels: tuple[int, ...] = ()
    out_channels: int = 256
    num_outs: int = 5


@dataclass(frozen=True)
class RPNConfig(Part):
    """The region proposal network.

    Attributes:
        in_channels: of the pyramid's levels.
        feat_channels: of the hidden convolution.
        scales: sides of the anchors over the stride.
        ratios: height over width.
        strides: pixels of the image for each place of a level; empty: as the backbone has them.
        nms_pre: candidates of each level before suppression.
        nms_pre_train: the same in training.
        max_per_image: proposals of an image.
        nms_iou: above which IoU a candidate is suppressed.
        positive_iou: from which IoU with a true box an anchor is positive.
        negative_iou: below which it is negative.
        min_positive_iou: from which the best anchors of a true box are positive all the same.
        samples: anchors of an image that are learnt from.
        positive_fraction: at most this share of them positive.
    """

    in_channels: int = 256
    feat_channels: int = 256
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = ()
    nms_pre: int = 1000
    nms_pre_train: int = 2000
    max_per_image: int = 1000
    nms_iou: float = 0.7
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    min_positive_iou: float = 0.3
    samples: int = 256
    positive_fraction: float = 0.5


@dataclass(frozen=True)
class BoxHeadConfig(Part):
    """Classification of regions, and their boxes.

    Attributes:
        in_channels: of the pyramid's levels.
        fc_out_channels: of the two hidden layers.
        num_classes: without the background.
        roi_size: side of a region's pooled map.
        stds: by which deltas are divided, for x, y, width, height.
        score_threshold: above which score a box is kept.
        nms_iou: above which IoU with a better box of its class a box is suppressed.
        max_per_image: detections of an image.
        positive_iou: from which IoU with a true box a proposal is positive, otherwise negative.
        samples: regions of an image that are learnt from.
        positive_fraction: at most this share of them positive.
    """

    in_channels: int = 256
    fc_out_channels: int = 1024
    num_classes: int = 80
    roi_size: int = 7
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_per_image: int = 100
    positive_iou: float = 0.5
    samples: int = 512
    positive_fraction: float = 0.25


@dataclass(frozen=True)
class MaskHeadConfig(Part):
    """Masks of regions.

    Attributes:
        in_channels: of the pyramid's levels.
        conv_out_channels: of the hidden convolutions.
        num_convs: how many.
        num_classes: as the box head's.
        roi_size: side of a region's pooled map; masks have twice that.
        threshold: from which probability on a pixel belongs to the object.
    """

    in_channels: int = 256
    conv_out_channels: int = 256
    num_convs: int = 4
    num_classes: int = 80
    roi_size: int = 14
    threshold: float = 0.5


_PARTS: dict[str, type[Part]] = {
    "neck": NeckConfig,
    "rpn": RPNConfig,
    "box_head": BoxHeadConfig,
    "mask_head": MaskHeadConfig,
}


@dataclass(frozen=True)
class MaskRCNNConfig:
    """All options of a Mask R-CNN. What depends on another part (channels, strides) is filled in where it is not given.

    Raises:
        ConfigError: parts that do not fit together.
    """

    backbone: VSSMConfig = dataclasses.field(default_factory=VSSMConfig)
    neck: NeckConfig = NeckConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()

    def __post_init__(self) -> None:
        """Fill in what follows from the backbone, then check."""
        dims = self.backbone.dims
        if not self.neck.in_channels:
            object.__setattr__(self, "neck", dataclasses.replace(self.neck, in_channels=dims))
        if not self.rpn.strides:
            strides = tuple(self.backbone.stem_stride * 2**level for level in range(self.neck.num_outs))
            object.__setattr__(self, "rpn", dataclasses.replace(self.rpn, strides=strides))
        self._check()

    def _check(self) -> None:
        neck, rpn, box, mask = self.neck, self.rpn, self.box_head, self.mask_head
        if neck.in_channels != self.backbone.dims:
            raise ConfigError(f"neck: in_channels {neck.in_channels} are not the backbone's dims {self.backbone.dims}")
        if neck.num_outs < len(neck.in_channels):
            raise ConfigError(f"neck: num_outs {neck.num_outs} must be at least the backbone's {len(neck.in_channels)}")
        if len(rpn.strides) != neck.num_outs:
            raise ConfigError(
                f"rpn: strides {rpn.strides} must have one entry for each of neck's {neck.num_outs} levels"
            )
        for name, part in (("rpn", rpn), ("box_head", box), ("mask_head", mask)):
            if part.in_channels != neck.out_channels:
                raise ConfigError(
                    f"{name}: in_channels {part.in_channels} must be the neck's out_channels {neck.out_channels}"
                )
        if box.num_classes != mask.num_classes:
            raise ConfigError(
                f"box_head has {box.num_classes} classes and mask_head {mask.num_classes}; give both one number"
            )
        if not rpn.scales or not rpn.ratios:
            raise ConfigError("rpn: scales and ratios must not be empty")
        if len(box.stds) != 4:
            raise ConfigError(f"box_head: stds {box.stds} must be four numbers, for x, y, width and height")
        if rpn.negative_iou > rpn.positive_iou:
            raise ConfigError(f"rpn: negative_iou {rpn.negative_iou} must not be above positive_iou {rpn.positive_iou}")

    @property
    def num_classes(self) -> int:
        """Kinds of objects, without the background."""
        return self.box_head.num_classes

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskRCNNConfig:
        """From nested plain values: ``backbone`` as for `VSSMConfig`, and one dict for each other part.

        Channels of a part that are not given are the neck's ``out_channels``; classes of one head that are not given
        are the other's.

        Raises:
            ConfigError: an unknown name or an illegal value.
        """
        legal = ["backbone", *_PARTS]
        for name, value in values.items():
            if name not in legal:
                raise ConfigError(
                    f"{name!r} is no part of a Mask R-CNN{nearest(str(name), legal)}; legal: {', '.join(legal)}"
                )
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} {value!r} is not a mapping of options")
        given = {name: dict(values.get(name, {})) for name in legal}
        channels = given["neck"].get("out_channels", NeckConfig.out_channels)
        for name in ("rpn", "box_head", "mask_head"):
            given[name].setdefault("in_channels", channels)
        for one, other in (("box_head", "mask_head"), ("mask_head", "box_head")):
            if "num_classes" in given[other]:
                given[one].setdefault("num_classes", given[other]["num_classes"])
        parts: dict[str, Any] = {}
        for name, part in _PARTS.items():
            try:
                parts[name] = part.from_dict(given[name])
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        return cls(backbone=VSSMConfig.from_dict(_backbone_options(given["backbone"])), **parts)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values for JSON, as stored with weights; `from_dict` takes them."""
        parts: dict[str, Any] = {name: getattr(self, name).to_dict() for name in _PARTS}
        return {"backbone": self.backbone.to_dict(), **parts}

    def replace(self, **changes: Any) -> MaskRCNNConfig:
        """A copy with some values changed.

        Args:
            **changes: ``num_classes``; ``backbone``, ``neck``, ``rpn``, ``box_head`` and ``mask_head``, each a dict of
                what changes in it; every other word is a field of the backbone's `VSSMConfig`.

        Raises:
            ConfigError: an unknown name or an illegal value.
        """
        values = self.to_dict()
        classes = changes.pop("num_classes", None)
        inner = {name: changes.pop(name) for name in (*_PARTS, "backbone") if name in changes}
        for name, change in inner.items():
            if not isinstance(change, Mapping):
                raise ConfigError(f"{name} {change!r} is not a mapping of options to change")
        backbone = self.backbone.replace(**_backbone_options(inner.pop("backbone", {})), **changes)
        if backbone.dims != self.backbone.dims or backbone.stem_stride != self.backbone.stem_stride:
            values["neck"].pop("in_channels")  # they follow the backbone
            values["rpn"].pop("strides")
        if "out_channels" in inner.get("neck", {}):
            for name in ("rpn", "box_head", "mask_head"):
                values[name].pop("in_channels")
        for name, change in inner.items():
            values[name] = {**values[name], **change}
        if classes is not None:
            for name in ("box_head", "mask_head"):
                values[name]["num_classes"] = classes
        return dataclasses.replace(self.from_dict({**values, "backbone": {"dims": backbone.dims}}), backbone=backbone)


def _backbone_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `VSSMConfig`; upstream's files also say which maps are returned, which here is all."""
    values = dict(values)
    depths = values.get("depths", VSSMConfig.depths)
    indices = values.pop("out_indices", None)
    if indices is not None and list(indices) != list(range(len(depths))):
        raise ConfigError(f"backbone: out_indices {indices!r} must be all {len(depths)} stages; leave it out")
    return values
