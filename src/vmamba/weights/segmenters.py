"""Which segmenter a weight file belongs to: what it says, or what names and shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vmamba.architecture.decoders import DecodeHeadConfig, FCNHeadConfig, FPNConfig, UNetConfig, UPerHeadConfig
from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.errors import CheckpointError
from vmamba.weights.described import BACKBONE, said_or_recognised, says_or_holds, shapes_and_backbone
from vmamba.weights.files import WeightFile
from vmamba.weights.misfits import some
from vmamba.weights.recognition import Recognised

_CLASSES = "decode_head.conv_seg.weight"


def holds_segmenter(file: WeightFile) -> bool:
    """Whether a weight file says that it is a segmenter's, or has a decode head with classes."""
    return says_or_holds(file, "decode_head", _CLASSES)


def describe_segmenter(file: WeightFile, source: str) -> Recognised[SegmenterConfig]:
    """What a weight file says that it is, in its metadata's ``config``, or else what it is recognised as.

    Raises:
        CheckpointError: the description is broken, or there is none and the weights are no segmenter's.
    """
    return said_or_recognised(file, source, SegmenterConfig.from_dict, recognise_segmenter)


def recognise_segmenter(
    state_dict: Mapping[str, Tensor], source: str = "the state dict"
) -> Recognised[SegmenterConfig]:
    """Recognise a segmenter by the names and shapes of its weights, in any of upstream's namings.

    Dropout and what `recognise` lists leave no trace; they are the named segmenter's, or the defaults.

    Args:
        state_dict: the weights. Only names and shapes are read; values may be on the meta device.
        source: what messages call it.

    Raises:
        CheckpointError: they are no segmenter's, or contradict each other.
    """
    shapes, found = shapes_and_backbone(state_dict, source)
    stages = tuple(i for i in range(len(found.config.depths)) if f"{BACKBONE}outnorm{i}.weight" in shapes)
    dims = [found.config.dims[i] for i in stages]
    try:
        config = SegmenterConfig(
            found.config, _decode_head(shapes), _auxiliary_head(shapes, dims), shapes[_CLASSES][0], stages or None
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{source} holds no weights that a segmenter can have ({type(error).__name__}: {error}); "
            f"it has {some(shapes) or 'nothing'}"
        ) from error
    for name, variant in SEGMENTERS.items():
        if variant.variant == found.name and _traces(variant.config) == _traces(config):
            free = {"in_chans": config.in_chans, "posembed": config.backbone.posembed}
            if config.backbone.posembed:
                free["imgsize"] = config.imgsize
            named = variant.config.replace(num_classes=config.num_classes, **free)
            return Recognised(named, name, found.assumed)
    return Recognised(config, None, found.assumed)


def _traces(config: SegmenterConfig) -> tuple[object, ...]:
    """What of the heads shows in weights: all but dropout."""
    heads = [head and replace(head, dropout_ratio=0.0) for head in (config.decode_head, config.auxiliary_head)]
    return (*heads, config.out_indices)


def _decode_head(shapes: Mapping[str, tuple[int, ...]]) -> DecodeHeadConfig:
    channels = shapes[_CLASSES][1]
    if "decode_head.bottleneck.conv.weight" in shapes:
        scales = sum(f"decode_head.psp_modules.{i}.1.conv.weight" in shapes for i in range(16))
        usual = UPerHeadConfig().pool_scales
        if scales != len(usual):
            raise ValueError(f"{scales} pooling scales, whose sizes do not show; build it and load the weights")
        return UPerHeadConfig(channels=channels)
    if "decode_head.decoder.p5.weight" in shapes:
        return FPNConfig(pyramid_channels=shapes["decode_head.decoder.p5.weight"][0], segmentation_channels=channels)
    blocks: list[int] = []
    while (name := f"decode_head.decoder.blocks.{len(blocks)}.conv2.0.weight") in shapes:
        blocks.append(shapes[name][0])
    stem = shapes.get("decode_head.stem.0.0.conv.weight", (UNetConfig().stem_channels,))[0]
    return UNetConfig(decoder_channels=tuple(blocks), stem_channels=stem)


def _auxiliary_head(shapes: Mapping[str, tuple[int, ...]], dims: list[int]) -> FCNHeadConfig | None:
    head = "auxiliary_head"
    if f"{head}.conv_seg.weight" not in shapes:
        return None
    count = sum(f"{head}.convs.{i}.conv.weight" in shapes for i in range(16))
    if not count:
        return FCNHeadConfig(num_convs=0, in_index=dims.index(shapes[f"{head}.conv_seg.weight"][1]))
    channels, width, _, side = shapes[f"{head}.convs.0.conv.weight"]
    return FCNHeadConfig(
        channels=channels,
        in_index=dims.index(width),
        num_convs=count,
        kernel_size=side,
        concat_input=f"{head}.conv_cat.conv.weight" in shapes,
    )
