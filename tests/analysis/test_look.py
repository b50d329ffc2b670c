"""The commands: what they print and write, before and after training, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from vmamba.analysis.classes import Classes
from vmamba.analysis.look import pixels_of, viewed
from vmamba.cli.main import main
from vmamba.data.preprocessing import Preprocessing
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.data.segmentation.masks import MaskFormat
from vmamba.errors import ConfigError
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import Trained, save_trained, weight_metadata

PREPROCESSING = Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("look") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    return path


def is_png(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 300


def test_scanmap(colour_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.png"
    words = ["scanmap", str(picture), "--weights", str(colour_run), "--stage", "0", "--output", str(out)]
    assert main([*words, "--query", "3,8"]) == 0
    said = capsys.readouterr().out
    assert float(said.split("again to ")[1].split()[0]) < 1e-5
    assert is_png(out)
    for query, message in (("3", "want row and column"), ("900,0", "no pixel of a")):
        assert main([*words, "--query", query]) == 2
        assert message in capsys.readouterr().err


def test_cam(colour_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.png"
    words = ["cam", str(picture), "--weights", str(colour_run), "--output", str(out)]
    assert main([*words, "--label", "0"]) == 0
    assert "logit" in capsys.readouterr().out
    assert is_png(out)
    assert main([*words, "--label", "zebra"]) == 2
    assert "label='zebra' is no class of these weights" in capsys.readouterr().err


def test_classes_are_chosen_by_name_or_number() -> None:
    task = Segmentation(PixelClasses.of(["Void", "disc", "square"]), PREPROCESSING, MaskFormat(3))
    assert Classes.of(task) == Classes(("Void", "disc", "square"), (0,))
    cranes = Classes.of(Classification(("crane", "7", "crane"), PREPROCESSING))
    assert cranes == Classes(("crane (0)", "7", "crane (2)"))
    assert [cranes.index(word) for word in ("7", "crane (2)", "2")] == [1, 2, 2]
    assert (cranes.name(1), cranes.name(9)) == ("7", "9")
    with pytest.raises(ConfigError, match=r"label='crane' is no class of these weights; did you mean 'crane \(2\)'"):
        cranes.index("crane")


def test_cam_of_a_segmenter_leaves_the_background_out(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    tiny = {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "decode_head": {"channels": 8}}
    model = vmamba.create_model("upernet_vmamba_nano", num_classes=2, **tiny).eval()
    with torch.no_grad():  # a fifth of the places is of the disc
        background, disc = model(pixels_of(picture, replace(PREPROCESSING, image_size=64))[None])[0]
        model.decode_head.conv_seg.bias[0] += (disc - background).quantile(0.8)
    task = Segmentation(PixelClasses.of(["background", "disc"]), PREPROCESSING, MaskFormat(2))
    weights = tmp_path / "s.safetensors"
    save_trained(weights, model.state_dict(), weight_metadata("upernet_vmamba_nano", model, task))
    words = ["cam", str(picture), "--weights", str(weights), "--output", str(tmp_path / "c.png"), "--image_size", "64"]
    said = []
    for label in ([], ["--label", "background"]):
        assert main([*words, *label]) == 0
        said.append(capsys.readouterr().out.split(":")[0])
    assert said == ["disc", "background"]


def test_segmenters_are_shown_more_than_their_crops(tmp_path: Path) -> None:
    task = Segmentation(PixelClasses.of(["background", "disc"]), PREPROCESSING, MaskFormat(2))

    def seen(task: Any, size: Any, wanted: int | None = None) -> tuple[int, int]:
        task = replace(task, preprocessing=replace(PREPROCESSING, image_size=size))
        found = viewed(Trained(torch.nn.Identity(), task, tmp_path, "x"), wanted)
        return found.height, found.width

    assert [seen(task, size) for size in (32, (64, 96), 512)] == [(256, 256), (256, 384), (512, 512)]
    assert seen(task, 32, 48) == (48, 48)
    assert seen(Classification(("a", "b"), PREPROCESSING), 32) == (32, 32)


def test_erf(colour_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "e.png", tmp_path / "e.json"
    words = ["erf", str(colour_run), "resnet10t", "--image_size", "64", "--output", str(out), "--json", str(figures)]
    assert main([*words, "--images", str(picture)]) == 0
    assert is_png(out)
    rows = json.loads(figures.read_text())
    assert [row["model"].split(", ")[1] for row in rows] == ["fresh", "trained", "fresh"]
    assert all(row["images"] == 1 for row in rows)
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
    assert rows[0]["areas"] != rows[1]["areas"]
    capsys.readouterr()
    assert main(["erf", "vmamba_nan", "--output", str(out)]) == 2
    assert "did you mean 'vmamba_nano'" in capsys.readouterr().err
    assert main(["erf", "convnext_atto", "--image_size", "1", "--output", str(out)]) == 2
    said = capsys.readouterr().err
    assert "'convnext_atto' cannot be run on images of 1 pixels" in said
    assert said.count("\n") == 1
    assert main(["erf", "vmamba_nano", "--count", "0"]) == 2
    assert "count=0" in capsys.readouterr().err
