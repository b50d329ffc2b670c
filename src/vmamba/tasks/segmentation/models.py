"""The networks that segment: built by name, described in weight files, and run."""

from __future__ import annotations

import copy
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
from vmamba.weights.adaptation import load_backbone_weights
from vmamba.weights.refusal import CLASS_LAYERS
from vmamba.weights.segmenters import holds_segmenter


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

    Of a segmenter with this decoder all is taken, but the layers that give the classes' scores only if it learnt the
    same classes, or as many without a name. Of a classifier, or a segmenter with another decoder, what the backbone
    needs is taken.

    Raises:
        CheckpointError: they do not fit.
    """
    own: dict[str, Tensor] = model.state_dict()
    if not holds_segmenter(weights) or _decoder(weights.state_dict) != _decoder(own):
        backbone = copy.deepcopy(model.backbone)
        load_backbone_weights(backbone, weights.state_dict, source=source)
        return own | {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    adapted = adapt_to(weights.state_dict, model, source)
    learnt = weights.metadata.get("classes")
    if learnt in (None, json.dumps(list(classes), ensure_ascii=False)):
        return adapted
    last = tuple(f"{layer}." for layer in CLASS_LAYERS)
    return {name: own[name] if name.startswith(last) else value for name, value in adapted.items()}


def _decoder(state_dict: Mapping[str, Tensor]) -> set[str]:
    """The parts of a decode head, by their names."""
    inner = [name.partition("decode_head.")[2] for name in state_dict if "decode_head." in name]
    return {name.partition(".")[0] for name in inner}


def network(model: Any) -> Callable[[Tensor], Tensor]:
    """A model as `vmamba.inference.tiling` takes it: at its own stride, where it is a segmenter."""
    if not hasattr(model, "logits"):
        return model  # type: ignore[no-any-return]  # an exported file, or one that was optimized

    def decode(pixels: Tensor) -> Tensor:
        scores: Tensor = model.logits(pixels)[0]
        return scores

    return decode
