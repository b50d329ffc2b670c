"""The demonstration, whole, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vmamba.cli.main import main


@pytest.mark.long
def test_the_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--epochs", "1", "--device", "cpu"]
    assert main(words) == 0
    out = capsys.readouterr().out

    # It ends by naming the files to look at; each is there.
    ending = out[out.index("Look at") :]
    named = re.findall(r"^  (demo/\S+) ", ending, re.MULTILINE)
    assert len(named) >= 5
    for name in named:
        assert Path(name).exists()
    for name in named:
        if name.endswith(".png"):
            with Image.open(name) as picture:
                assert min(picture.size) > 200

    figures = json.loads(Path("demo/eval.json").read_text())
    assert figures["dataset"] == "digits"
    assert figures["images"] == sum(row["images"] for row in figures["classes"]) == 359
    assert figures["top1"] > 0.3  # one epoch; a tenth would be chance
    answers = json.loads(Path("demo/predictions/predictions.json").read_text())["predictions"]
    assert len(answers) == 30
    assert sorted({answer["truth"] for answer in answers}) == list("0123456789")
    with Image.open(answers[0]["path"]) as digit:
        assert (digit.size, digit.mode) == ((8, 8), "L")

    # A second run makes its own folder anew, and leaves alone what is not its own.
    Path("demo/notes.txt").write_text("mine")
    Path("demo/held_out/0/stray.png").touch()
    assert main(words) == 0
    capsys.readouterr()
    assert Path("demo/notes.txt").read_text() == "mine"
    assert not Path("demo/held_out/0/stray.png").exists()
    assert json.loads(Path("demo/eval.json").read_text())["confusion"] == figures["confusion"]


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "is not empty and no demonstration's" in capsys.readouterr().err
    assert (tmp_path / "run/precious").exists()


def test_a_mistake_leaves_an_earlier_demonstration_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.safetensors").touch()
    (tmp_path / ".vmamba-demo").touch()
    for words in (["--epochs", "0"], ["--device", "xpu"]):
        assert main(["demo", "--output", str(tmp_path), *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert (tmp_path / "run/best.safetensors").exists()
