"""ONNX files in use: any number of images, prediction and evaluation with them, foreign and broken ones."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from export_cases import META, tiny_onnx
from PIL import Image
from rich.console import Console

import vmamba
from vmamba.errors import CheckpointError, ConfigError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.export.exporter import ExportConfig, export
from vmamba.kernels.interface import recorded_runs
from vmamba.tasks.trained import load_onnx


@pytest.mark.long
def test_predict_and_eval_take_an_onnx_file(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    path = tmp_path / "colours.onnx"
    text = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    export(ExportConfig(str(colour_run), "onnx", path), text)
    said = text.export_text()
    assert re.search(r"largest error against the model.*: \d\.\de-0\d \(allowed 1e-04; 6 images\)", said)
    assert f"wrote {path}" in said

    images = (colour_images / "red", colour_images / "blue")
    own = predict(PredictConfig(images, colour_run, output=tmp_path / "a", sheet=0))
    with recorded_runs() as runs:
        got = predict(PredictConfig(images, path, output=tmp_path / "b", sheet=0))
    assert runs == []  # ONNX Runtime computed, not we
    for one, other in zip(own, got, strict=True):
        assert one.path == other.path
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)

    from vmamba.data import DataConfig

    data = DataConfig("folder", colour_images)
    want = evaluate(EvaluateConfig(colour_run, split="val")).scores
    scores = evaluate(EvaluateConfig(path, data, split="val")).scores
    assert scores.confusion == want.confusion
    assert scores.loss == pytest.approx(want.loss, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 4, "n"])
def test_a_fixed_batch_takes_any_number_of_images(batch: int | str, tmp_path: Path) -> None:
    model = load_onnx(tiny_onnx(tmp_path / "m.onnx", META, batch)).model
    pixels = torch.randn(5, 3, 2, 2)
    want = pixels.flatten(1) @ torch.arange(36.0).reshape(12, 3)
    torch.testing.assert_close(model(pixels), want)
    with pytest.raises(vmamba.InputError, match=r"takes images .* given \(1, 3, 4, 2\).*--dynamic"):
        model(torch.zeros(1, 3, 4, 2))


def test_foreign_and_broken_onnx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "i.png")

    def use(path: Path, device: str = "auto") -> None:
        predict(PredictConfig((tmp_path / "i.png",), path, output=tmp_path / "out", device=device))

    with pytest.raises(CheckpointError, match=r"missing: model, classes, preprocessing.*vmamba export --to onnx"):
        use(tiny_onnx(tmp_path / "foreign.onnx", {}))
    with pytest.raises(CheckpointError, match=r"missing: format"):
        use(tiny_onnx(tmp_path / "other.onnx", {**META, "format": "theirs"}))
    with pytest.raises(CheckpointError, match=r"description cannot be read.*export it again"):
        use(tiny_onnx(tmp_path / "bad.onnx", {**META, "classes": "["}))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"broken\.onnx cannot be run by ONNX Runtime"):
        use(tmp_path / "broken.onnx")
    with pytest.raises(CheckpointError, match="no such file"):
        use(tmp_path / "none.onnx")
    good = tiny_onnx(tmp_path / "good.onnx", META)
    with pytest.raises(ConfigError, match="on the CPU; give device=cpu"):
        use(good, "cuda")
    use(good)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'pip install "vmamba\[onnx\]"'):
        load_onnx(good)
