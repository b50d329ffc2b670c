"""The networks that segment: built by name, described in weight files, and run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.architecture.segmenter_variants import segmenter_config
from vmamba.data import Preprocessing
from vmamba.errors import ConfigError
from vmamba.heads import build_segmenter
from vmamba.models import VARIANTS
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.weights import WeightFile, adapt_to


def create_segmenter(settings: Settings, classes: int, preprocessing: Preprocessing) -> nn.Module:
    """The model of a training configuration with fresh weights.

    Batch norms are synchronised over the processes of a run on GPUs, as upstream's training has it.

    Raises:
        ConfigError: a model without a decoder.
    """
    check_segmenter(settings.model, settings.model_options)
    config = segmenter_config(
        settings.model,
        num_classes=classes,
        in_chans=preprocessing.in_chans,
        imgsize=preprocessing.height,
        drop_path_rate=settings.drop_path_rate,
        selective_scan_backend=settings.selective_scan_backend,
        **{"use_checkpoint": settings.checkpointing, **settings.model_options},
    )
    model: nn.Module = build_segmenter(config)
    if torch.distributed.is_initialized() and torch.cuda.is_available():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def check_segmenter(name: str, options: Mapping[str, Any]) -> None:
    """Make sure that there is such a segmenter.

    Raises:
        ConfigError: an unknown name, a classifier's, or an option that there is not.
    """
    if name in VARIANTS:
        raise ConfigError(
            f"model={name!r} classifies images; segmentation needs one with a decoder, such as 'upernet_{name}' or "
            f"'unet_{name}'"
        )
    segmenter_config(name, **options)


def segmenter_metadata(model: Any, preprocessing: Preprocessing) -> dict[str, str]:
    """A weight file's entries ``config`` and ``preprocessing``."""
    return {"config": json.dumps(model.config.to_dict()), "preprocessing": json.dumps(preprocessing.to_dict())}


def segmenter_from_metadata(metadata: Mapping[str, str]) -> nn.Module:
    """The model that `segmenter_metadata` describes, with fresh weights. Raises ValueError or TypeError as JSON."""
    model: nn.Module = build_segmenter(json.loads(metadata["config"]))
    return model


def segmenter_parts(model: Any) -> ModelParts:
    """The trunk is the backbone, the head the decoder."""
    return ModelParts(model, model.backbone, model.decode_head)


def adapt_segmenter(model: Any, weights: WeightFile, classes: Sequence[str], source: str) -> dict[str, Tensor]:
    """A state dict for a segmenter from the weights of another, or of a classifier.

    Of another segmenter all is taken but the last convolutions of its heads, and those too if it learnt the same
    classes. Of a classifier, or of a segmenter with another decoder, what the backbone needs is taken.

    Raises:
        CheckpointError: they do not fit.
    """
    own: dict[str, Tensor] = model.state_dict()
    given = weights.state_dict
    if not any(name.startswith("decode_head.") for name in given):
        trunk = adapt_to(given, model.backbone, source)
        return own | {f"backbone.{name}": value for name, value in trunk.items()}
    backbone = {name.removeprefix("backbone."): value for name, value in given.items() if name.startswith("backbone.")}
    taken = {f"backbone.{name}": value for name, value in adapt_to(backbone, model.backbone, source).items()}
    heads = [name for name in own if not name.startswith("backbone.")]
    inner = [name for name in heads if not name.startswith(_LAST)]
    if all(name in given and given[name].shape == own[name].shape for name in inner):
        taken |= {name: given[name] for name in inner}
        last = [name for name in heads if name.startswith(_LAST)]
        same = weights.metadata.get("classes") == json.dumps(list(classes), ensure_ascii=False)
        if same and all(name in given for name in last):
            taken |= {name: given[name] for name in last}
    return own | taken


#: The convolutions that give the classes' scores.
_LAST = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.", "decode_head.segmentation_head.")


def network(model: Any) -> Callable[[Tensor], Tensor]:
    """A model as `vmamba.inference.tiling` takes it: at its own stride, where it is a segmenter."""
    if not hasattr(model, "logits"):
        return model  # type: ignore[no-any-return]  # an exported file, or one that was optimized

    def decode(pixels: Tensor) -> Tensor:
        scores: Tensor = model.logits(pixels)[0]
        return scores

    return decode
