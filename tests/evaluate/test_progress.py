"""A measurement that was stopped goes on where it was, to the same figures; what is not its own is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from vmamba.errors import ConfigError, OutputError
from vmamba.evaluate import measure as module
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.progress import Progress


class StoppedError(Exception):
    pass


def stopping(after: int, kept: list[int], always: float = 0.0) -> Any:
    """`Progress` that writes after every round and stops the command after so many."""

    class Stopping(Progress):
        def __init__(self, path: Path, asked: Any) -> None:
            super().__init__(path, asked, seconds=always)

        def note(self, meter: Any, seen: int) -> None:
            super().note(meter, seen)
            kept.append(seen)
            if len(kept) == after:
                raise StoppedError

    return Stopping


def test_it_goes_on(colour_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = evaluate(EvaluateConfig(colour_run, split="all", batch_size=4)).scores
    config = EvaluateConfig(colour_run, split="all", batch_size=4, progress=tmp_path / "deep" / "done.bin")
    assert config.progress is not None
    seen: list[int] = []
    monkeypatch.setattr(module, "Progress", stopping(3, seen))
    with pytest.raises(StoppedError):
        evaluate(config)
    assert config.progress.is_file()
    later: list[int] = []
    monkeypatch.setattr(module, "Progress", stopping(-1, later))
    assert evaluate(config).scores == want
    assert seen == [4, 8, 12]
    assert later[0] == 16  # nothing was measured twice
    assert later[-1] == want.count
    assert list(config.progress.parent.iterdir()) == []


def test_it_writes_now_and_then(colour_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Progress", stopping(3, [], always=3600.0))
    with pytest.raises(StoppedError):
        evaluate(EvaluateConfig(colour_run, split="all", batch_size=4, progress=tmp_path / "done.bin"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_something_else_is_refused(colour_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "done.bin"
    with monkeypatch.context() as patched:
        patched.setattr(module, "Progress", stopping(1, []))
        with pytest.raises(StoppedError):
            evaluate(EvaluateConfig(colour_run, split="all", batch_size=4, progress=place))
    before = place.read_bytes()
    with pytest.raises(ConfigError, match="begun with other split; give the same again, or remove it"):
        evaluate(EvaluateConfig(colour_run, split="test", progress=place))
    with pytest.raises(ConfigError, match="begun with other weights"):
        evaluate(EvaluateConfig(colour_run / "last.safetensors", split="all", progress=place))
    assert place.read_bytes() == before
    for foreign in (b"", b"epoch,loss\n1,0.5\n", pickle.dumps([1, 2])):
        place.write_bytes(foreign)
        with pytest.raises(ConfigError, match="holds no unfinished measurement"):
            evaluate(EvaluateConfig(colour_run, split="all", progress=place))
        assert place.read_bytes() == foreign
    with pytest.raises(OutputError, match="is a folder"):
        evaluate(EvaluateConfig(colour_run, progress=tmp_path))
