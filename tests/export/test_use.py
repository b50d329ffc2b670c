"""Exported files in use: any number of images, prediction and evaluation with them, foreign and broken ones."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import META, Pointwise, tiny_file
from PIL import Image
from rich.console import Console

import vmamba
from vmamba.data import Preprocessing
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.data.segmentation.masks import MaskFormat
from vmamba.errors import CheckpointError, ConfigError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.export.exporter import ExportConfig, export
from vmamba.inference.exported import KINDS, open_exported
from vmamba.kernels.interface import recorded_runs
from vmamba.segment import SegmentConfig, segment_files
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import load_exported


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


EVERY = pytest.mark.parametrize("suffix", KINDS)


@EVERY
@pytest.mark.parametrize("batch", [1, 2, 4, None])
def test_a_fixed_batch_takes_any_number_of_images(batch: int | None, suffix: str, tmp_path: Path) -> None:
    model, metadata = open_exported(tiny_file(tmp_path / f"m{suffix}", META, (batch, 3, 2, 2)))
    assert metadata == META
    assert model.shape == (batch, 3, 2, 2)
    pixels = torch.randn(5, 3, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), pixels.mean((2, 3)) * 3)
    with pytest.raises(vmamba.InputError, match=r"takes images \(.*3, 2, 2\), given \(1, 3, 4, 2\).*--dynamic"):
        model(torch.zeros(1, 3, 4, 2))


@EVERY
def test_classifiers_of_every_kind_predict(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (10, 200, 30)).save(tmp_path / "i.png")
    path = tiny_file(tmp_path / f"m{suffix}", META)
    (answer,) = predict(PredictConfig((tmp_path / "i.png",), path, output=tmp_path / "out", sheet=0))
    assert answer.classes[0] == "b"
    assert answer.probabilities == pytest.approx(torch.tensor([600, 90, 30]).div(255).softmax(0).tolist(), abs=1e-5)


@EVERY
def test_segmenters_of_every_kind_answer_in_windows(suffix: str, tmp_path: Path) -> None:
    masks = MaskFormat(3, 255)
    task = Segmentation(PixelClasses.of(["r", "g", "b"]), Preprocessing(16, 3, (0.5,) * 3, (0.5,) * 3), masks)
    described = {"format": "vmamba", "model": "m", "task": "segmentation"}
    network = SimpleNamespace(config=SimpleNamespace(to_dict=dict))
    path = tiny_file(tmp_path / f"m{suffix}", {**described, **task.metadata(network)}, (1, 3, 16, 16), Pointwise())
    colours = np.random.RandomState(0).randint(0, 256, (40, 51, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "i.png")

    def asked(**options: Any) -> np.ndarray:
        segment_files(SegmentConfig((tmp_path / "i.png",), path, tmp_path / "out", overwrite=True, **options))
        with Image.open(tmp_path / "out/i_mask.png") as mask:
            return np.array(mask)

    assert (asked(mode="slide") == colours.argmax(2)).mean() > 0.99  # two channels may be as bright
    assert (asked(mode="slide", flip=True, blend="gaussian") == colours.argmax(2)).mean() > 0.99
    with pytest.raises(vmamba.InputError, match=r"takes images \(1, 3, 16, 16\), given \(1, 3, 40, 51\).*mode=slide"):
        asked()


@EVERY
def test_foreign_and_broken_files(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "i.png")
    kind = KINDS[suffix]

    def use(path: Path, device: str = "auto") -> None:
        predict(PredictConfig((tmp_path / "i.png",), path, output=tmp_path / "out", device=device))

    with pytest.raises(CheckpointError, match=r"missing: model, classes, preprocessing.*written by `vmamba export`"):
        use(tiny_file(tmp_path / f"foreign{suffix}", {}))
    with pytest.raises(CheckpointError, match=r"missing: format"):
        use(tiny_file(tmp_path / f"other{suffix}", {**META, "format": "theirs"}))
    with pytest.raises(CheckpointError, match=r"description cannot be read.*export it again"):
        use(tiny_file(tmp_path / f"bad{suffix}", {**META, "classes": "["}))
    for content in (b"no model", b"<?xml version='1.0'?><net name='n' version='11'>"):
        (tmp_path / f"broken{suffix}").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"broken\{suffix} (cannot be run by {kind.runtime}|is no OpenVINO)"):
            use(tmp_path / f"broken{suffix}")
    with pytest.raises(CheckpointError, match="no such file"):
        use(tmp_path / f"none{suffix}")
    good = tiny_file(tmp_path / f"good{suffix}", META)
    with pytest.raises(ConfigError, match=f"runs in {kind.runtime}, on the CPU; give device=cpu"):
        use(good, "cuda")
    use(good)
    if kind.package != "torch":
        monkeypatch.setitem(sys.modules, kind.package, None)
        with pytest.raises(ConfigError, match=rf'pip install "vmamba\[{kind.target}\]"'):
            load_exported(good)
