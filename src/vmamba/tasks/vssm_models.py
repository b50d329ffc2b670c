"""What tasks share whose model is a plain `VSSM`: one vector of outputs for a whole image."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import nn

from vmamba.architecture.config import VSSMConfig
from vmamba.data import Preprocessing
from vmamba.errors import ConfigError, InputError
from vmamba.models import VSSM, create_model
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.weights.loading import config_to_store


def build_vssm(settings: Settings, outputs: int, preprocessing: Preprocessing) -> VSSM:
    """The model of a training configuration with ``outputs`` outputs, and fresh weights."""
    return create_model(
        settings.model,
        num_classes=outputs,
        in_chans=preprocessing.in_chans,
        imgsize=preprocessing.height,
        drop_path_rate=settings.drop_path_rate,
        selective_scan_backend=settings.selective_scan_backend,
        **{"use_checkpoint": settings.checkpointing, **settings.model_options},
    )


def vssm_metadata(model: nn.Module, preprocessing: Preprocessing) -> dict[str, str]:
    """A weight file's entries ``config`` and ``preprocessing``."""
    assert isinstance(model, VSSM)
    config = config_to_store(model.config, model.state_dict(), VSSM)
    return {"config": json.dumps(config.to_dict()), "preprocessing": json.dumps(preprocessing.to_dict())}


def vssm_from_metadata(metadata: Mapping[str, str]) -> VSSM:
    """The model that `vssm_metadata` describes, weights still fresh. Raises ValueError or TypeError as JSON does."""
    return VSSM(VSSMConfig.from_stored(json.loads(metadata["config"])))


def vssm_parts(model: nn.Module) -> ModelParts:
    """The model is its own trunk."""
    assert isinstance(model, VSSM)
    return ModelParts(model, model, model.get_classifier())


def check_image_size(model: nn.Module, preprocessing: Preprocessing, name: str) -> None:
    """Show the model, in eval mode, one black image: it knows best which sizes it can take.

    Raises:
        ConfigError: not this one.
    """
    p = preprocessing
    image = torch.zeros(1, p.in_chans, p.height, p.width, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            model(image)
    except InputError as error:
        raise ConfigError(f"image_size={p.image_size} does not suit model {name!r}: {error}") from error
