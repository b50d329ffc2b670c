"""What the programs of both libraries share: configurations, networks of a parity case, differences."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from parity_fill import fill
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
PARITY = HERE.parents[2] / "parity"


def configuration(name: str, changes: dict[str, Any]) -> Config:
    """The file of this folder with some values changed; ``"model.backbone.dims"`` names one."""
    config = Config.fromfile(HERE / f"{name}.py")
    config.merge_from_dict(changes)
    return config


def under(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Changes of one part."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def digest(model: nn.Module) -> str:
    """Of the ordered keys and shapes."""
    keys = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def fill_weights(model: nn.Module, seed: int) -> list[list[Any]]:
    """Fill the whole state dict as `cases.json` says; its keys and shapes in order."""
    filled = {}
    for key, value in model.state_dict().items():
        array = fill(key, value.shape, seed)
        if key.endswith("running_mean"):
            array = array - np.float32(1)
        filled[key] = torch.from_numpy(array)
    model.load_state_dict(filled)
    return [[key, list(value.shape)] for key, value in filled.items()]


def cases(task: str) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """The stored cases whose tensors lie here; of ``small_128x96`` only some do."""
    folder = PARITY / task
    described = json.loads((folder / "cases.json").read_text())["cases"]
    return {
        name: (case, load_file(folder / case["file"]))
        for name, case in described.items()
        if name != "small_128x96" and (folder / case["file"]).exists()
    }


def apart(got: Tensor, want: Tensor) -> float:
    """The largest difference over the scale of what is stored."""
    assert got.shape == want.shape, f"{tuple(got.shape)} for {tuple(want.shape)}"
    want = want.to(got.dtype)
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


def without_gradient(model: nn.Module) -> list[str]:
    """Parameters that a backward pass did not reach, which DistributedDataParallel would wait for."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
