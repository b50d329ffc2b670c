"""The commands: what they print and write, before and after training, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmamba.cli.main import main


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


def test_erf(colour_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "e.png", tmp_path / "e.json"
    words = ["erf", str(colour_run), "resnet10t", "--image_size", "64", "--output", str(out), "--json", str(figures)]
    assert main([*words, "--images", str(picture)]) == 0
    assert is_png(out)
    rows = json.loads(figures.read_text())
    assert [row["model"].split(", ")[1] for row in rows] == ["fresh", "trained", "fresh"]
    assert all(row["images"] == 1 for row in rows)
    assert rows[0]["areas"] != rows[1]["areas"]
    capsys.readouterr()
    assert main(["erf", "vmamba_nan", "--output", str(out)]) == 2
    assert "did you mean 'vmamba_nano'" in capsys.readouterr().err
    assert main(["erf", "vmamba_nano", "--count", "0"]) == 2
    assert "count=0" in capsys.readouterr().err
