"""Weight files of networks over volumes: those that say what they are come back, the others are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import vmamba
from vmamba.errors import CheckpointError
from vmamba.zoo.weight_files import inspect_weights

NETWORKS: list[type[nn.Module]] = [vmamba.VSSM3D, vmamba.UNet3D]


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind(dims=(4, 8), depths=(0, 1), strides=(1, (1, 2, 2)), num_classes=3, scan_axes=(0, 2)).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_that_says_what_it_is(kind: type[nn.Module], suffix: str, tmp_path: Path) -> None:
    model, path = network(kind), tmp_path / f"weights{suffix}"
    vmamba.save_weights(path, model.state_dict(), {"config": json.dumps(model.config.to_dict())})
    loaded = vmamba.load(path)
    assert type(loaded) is kind
    assert loaded.config == model.config
    volume = torch.randn(1, 1, 4, 4, 8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(volume), model(volume), rtol=0, atol=0)
    found = inspect_weights(path)
    assert found.fits
    assert found.task == {"VSSM3D": "classification", "UNet3D": "segmentation"}[kind.__name__] + " of volumes"
    assert found.config == model.config.to_dict()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_that_does_not(kind: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(network(kind).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"network over volumes and does not say which one.*Build it"):
        vmamba.load(path)
    assert "does not say which one" in str(inspect_weights(path).problem)


def test_what_does_not_decay() -> None:
    unet = vmamba.UNet3D(dims=(4, 8), depths=(0, 1), strides=(1, 2))
    names = {name for name, _ in unet.named_parameters()}
    assert {f"encoder.{name}" for name in unet.encoder.no_weight_decay()} == unet.no_weight_decay() <= names
    assert unet.no_weight_decay()


def test_they_are_no_named_models() -> None:
    with pytest.raises(vmamba.ConfigError, match="legal: segmentation, detection, classification"):
        vmamba.list_models(task="segmentation of volumes")
