"""Segmenters exported: the file's logits are the model's, at one size and at all, and it says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vmamba
from vmamba.export.exporter import ExportConfig, export
from vmamba.export.source import load_source
from vmamba.inference.exported import open_exported

SMALL: dict[str, Any] = {"num_classes": 3, "imgsize": 64, "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


def file_of(path: Path, decoder: str) -> Path:
    torch.manual_seed(0)
    model = vmamba.create_model(f"{decoder}_vmamba_nano", **SMALL)
    described = {"config": json.dumps(model.config.to_dict()), "model": f"{decoder}_vmamba_nano"}
    vmamba.save_weights(path, model.state_dict(), described)
    return path


#: A target each is run every time; all of them take half an hour, those at all sizes most of it.
OFTEN = {("torch-export", "", "unet"), ("onnx", "", "upernet"), ("openvino", "", "fpn")}
CASES = [
    pytest.param(to, axes, decoder, marks=pytest.mark.long if (to, axes, decoder) in OFTEN else pytest.mark.endless)
    for to in ("torch-export", "onnx", "openvino")
    for axes in ("", "batch,height,width")
    for decoder in ("upernet", "unet", "fpn")
]


@pytest.mark.parametrize(("to", "dynamic", "decoder"), CASES)
def test_a_segmenters_file_gives_its_logits(decoder: str, dynamic: str, to: str, tmp_path: Path) -> None:
    for package in {"onnx": ["onnxruntime", "onnxscript"], "openvino": ["openvino", "onnxscript"]}.get(to, []):
        pytest.importorskip(package)
    source = file_of(tmp_path / "w.safetensors", decoder)
    ending = {"torch-export": "x.pt2", "onnx": "x.onnx", "openvino": "x.xml"}[to]
    # `export` itself compares the logits, at a second size too where that is open.
    done = export(ExportConfig(str(source), to, tmp_path / ending, dynamic))  # type: ignore[arg-type]
    assert done.error <= 1e-5
    _, metadata = open_exported(done.files[0])
    assert metadata["task"] == "segmentation"
    assert json.loads(metadata["config"])["decode_head"]["num_classes"] == 3


def test_a_named_segmenter_is_a_source() -> None:
    source = load_source("upernet_vmamba_nano")
    assert source.pixels.shape == (2, 3, 256, 256)
    assert source.network.depths == (1, 1, 2, 1)
    assert source.metadata["task"] == "segmentation"
    assert "fresh, random weights" in str(source.warning)
