"""Measuring and predicting by several processes, and going on with what a stopped prediction has left."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vmamba.errors import ConfigError, DataError
from vmamba.evaluate import predict as module
from vmamba.evaluate.journal import NAME, Journal, Record
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.evaluate.processes import Processes


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("images", "size", "start"), [(0, 4, 0), (1, 4, 0), (23, 4, 0), (24, 4, 3), (40, 4, 40)])
def test_each_image_is_dealt_out_once_and_rounds_keep_the_order(count: int, images: int, size: int, start: int) -> None:
    every = [Processes(index, count) for index in range(count)]
    rounds = {process.rounds(images, size, start) for process in every}
    assert len(rounds) == 1
    dealt = [process.batches(images, size, start) for process in every]
    assert max(map(len, dealt)) == rounds.pop()
    in_turn = [
        index for number in range(len(dealt[0])) for own in dealt if number < len(own) for index in own[number]
    ]  # fmt: skip
    assert in_turn == list(range(start, images))


#: Measures a run on all its images and predicts, and says what this process got.
SCRIPT = """
import json, os, sys
from pathlib import Path
from rich.console import Console
from vmamba.data import DataConfig
from vmamba.errors import VMambaError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
run, images, out = map(Path, sys.argv[1:])
def say(**values):
    print(json.dumps({"rank": os.environ["RANK"], **values}), flush=True)
found = evaluate(EvaluateConfig(run, split="all", batch_size=4, device="cpu", json=out / "e.json"))
say(images=found.scores.images, top1=found.scores.top1, loss=found.scores.loss, confusion=found.scores.confusion)
answers = predict(
    PredictConfig((images,), run, output=out / "p", batch_size=4, device="cpu", sheet=3, features=out / "f.npz"),
    Console(),
)
say(answers=[[str(a.path), a.classes[0]] for a in answers])
try:
    predict(PredictConfig((out / "none",), run, output=out / "q", device="cpu"))
except VMambaError as error:
    say(refused=str(error))
"""


def test_two_processes_find_what_one_finds(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(colour_run), str(colour_images), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    main, other = ([json.loads(line) for line in text.splitlines() if line.startswith('{"rank')] for text in said)

    alone = evaluate(EvaluateConfig(colour_run, split="all", device="cpu"))
    for values in (main[0], other[0]):  # 45 images: 12 batches, 6 for each
        assert values["images"] == alone.scores.images == 45
        assert values["confusion"] == [list(row) for row in alone.scores.confusion]
        assert values["loss"] == pytest.approx(alone.scores.loss, rel=1e-5)
    answers = predict(PredictConfig((colour_images,), colour_run, output=tmp_path / "alone", device="cpu", sheet=0))
    assert main[1]["answers"] == [[str(answer.path), answer.classes[0]] for answer in answers]
    assert other[1]["answers"] == []
    both = [json.loads((tmp_path / name / "predictions.json").read_text())["predictions"] for name in ("p", "alone")]
    assert [row["path"] for row in both[0]] == [row["path"] for row in both[1]]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["contact_sheet.png", "predictions.json"]
    assert "wrote" in said[0]
    assert "wrote" not in said[1]
    for values in (main[2], other[2]):
        assert "no image or folder" in values["refused"]


def stopped_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the prediction broken off before the batch after this many."""
    left, plain = iter(range(batches, -1, -1)), module._ask

    def ask(*given: Any) -> Any:
        if next(left) == 0:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(module, "_ask", ask)


@pytest.mark.parametrize("torn", [False, True])
def test_a_stopped_prediction_is_gone_on_with(
    colour_run: Path, colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(colour_images.rglob("*.png"))[::4]):
        (folder / f"{i:02d}.png").write_bytes(path.read_bytes())
    (folder / "03.png").write_bytes(b"junk")

    def config(output: str, **fields: Any) -> PredictConfig:
        values = {"batch_size": 2, "sheet": 0, "unreadable": "skip", "device": "cpu", **fields}
        return PredictConfig((folder,), colour_run, output=tmp_path / output, **values)

    whole = predict(config("whole"))
    assert len(whole) == 11
    with monkeypatch.context() as patch:
        stopped_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(config("parts"))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [NAME]
    if torn:
        journal = tmp_path / "parts" / NAME
        journal.write_bytes(journal.read_bytes()[:-7])
    with pytest.raises(ConfigError, match=r"begun with other topk\. Give the same"):
        predict(config("parts", resume=True, topk=1))
    said = io.StringIO()
    asked: list[int] = []
    plain = module._ask
    monkeypatch.setattr(module, "_ask", lambda *given: asked.extend(i for i, *_ in given[2]) or plain(*given))
    answers = predict(config("parts", resume=True), Console(file=said, width=200))
    done = 7 if torn else 8
    assert asked == list(range(done, 12))
    assert f"going on after {done} of 12 images" in said.getvalue()
    assert [answer.path for answer in answers] == [answer.path for answer in whole]
    files = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("whole", "parts")]
    for one, other in zip(*(file.pop("predictions") for file in files), strict=True):
        # A batch of another size may round otherwise.
        assert one["path"] == other["path"]
        for a, b in zip(one["top"], other["top"], strict=True):
            assert a == {**b, "probability": pytest.approx(b["probability"], abs=2e-6)}
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["predictions.json"]
    predict(config("parts", resume=True))  # nothing unfinished: anew
    with pytest.raises(ConfigError, match="features or resume, not both"):
        config("parts", resume=True, features=tmp_path / "f.npz")


def test_readers_of_their_own_change_nothing(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    images = (colour_images / "red",)
    some = [
        predict(PredictConfig(images, colour_run, output=tmp_path / "o", num_workers=n, sheet=0, device="cpu"))
        for n in (0, 2)
    ]
    assert some[0] == some[1]
    (tmp_path / "bad.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"^cannot read image .*bad\.png: not an image.*unreadable=skip$"):
        predict(PredictConfig((tmp_path / "bad.png",), colour_run, output=tmp_path / "o", num_workers=1))


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"images": "1"})
    assert journal.resume() == []
    journal.add([Record({"path": "ü"}), Record(skipped="why")])
    again = Journal(tmp_path, {"images": "1"})
    assert again.resume() == [Record({"path": "ü"}), Record(skipped="why")]
    again.add([Record({"path": "\udcff"})])
    assert Journal(tmp_path, {"images": "1"}).resume()[2].answer == {"path": "\udcff"}
    journal.path.write_bytes(b"no JSON\n")
    with pytest.raises(ConfigError, match=r"cannot go on from .*remove it to start anew"):
        journal.resume()
    journal.path.write_bytes(b'{"images": "1"')  # stopped in its first line
    assert journal.resume() == []
