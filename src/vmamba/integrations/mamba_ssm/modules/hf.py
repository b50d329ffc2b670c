"""Stands in for ``mamba_ssm.utils.hf``: configuration and weights from a folder or the Hugging Face hub.

huggingface_hub is imported when a function is called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import CheckpointError

__all__ = ["load_config_hf", "load_state_dict_hf"]

_CONFIG = "config.json"
_WEIGHTS = "pytorch_model.bin"


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Read ``config.json`` of a folder, or of a repository on the hub.

    Raises:
        CheckpointError: no such folder or repository, no network, or no JSON.
    """
    path = _file(model_name, _CONFIG)
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); fetch it again") from error
    return config


def load_state_dict_hf(
    model_name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read ``pytorch_model.bin`` of a folder, or of a repository on the hub: tensors only, no code is run.

    Args:
        model_name: folder or repository.
        device, dtype: what the tensors are converted to; None leaves the CPU, and the stored dtype.

    Raises:
        CheckpointError: as of `load_config_hf`.
    """
    path = _file(model_name, _WEIGHTS)
    try:
        state_dict: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file makes torch raise is of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"cannot read {path} ({reason}); fetch it again") from error
    return {key: t.to(device=device, dtype=dtype) for key, t in state_dict.items()}


def _file(model_name: str, name: str) -> Path:
    folder = Path(model_name)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no {name}; give a folder that save_pretrained wrote")
        return folder / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model_name, name))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"cannot load {name} of {model_name}, which is neither a folder here nor a repository in reach ({reason})"
        ) from error
