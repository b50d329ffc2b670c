"""What a run tells about itself: gauges in metrics.csv and on the terminal, and trackers."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from vmamba.data import DataConfig
from vmamba.errors import ConfigError
from vmamba.tasks.classification.task import Classification
from vmamba.train.accelerator import accelerator_for
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.loop.gauges import Gauges
from vmamba.train.reports import trackers
from vmamba.train.reports.report import Reporter
from vmamba.train.reports.rows import EpochRow
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

MODEL: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1]}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)


def config(images: Path, output: Path, **fields: Any) -> TrainConfig:
    data = DataConfig("folder", images, image_size=16)
    plain = {"model_options": MODEL, "epochs": 2, "batch_size": 5, "lr": 5e-3, "num_workers": 0, "device": "cpu"}
    return TrainConfig(**{**plain, "data": data, "output": output, **fields})


# --- gauges


def test_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    with accelerator_for(TrainConfig(device="cpu")) as accelerator:
        gauges = Gauges(accelerator)  # 0
        assert list(gauges.watched("abc")) == ["a", "b", "c"]  # 1-2, 3-4, 5-6, and 7-8 for the end
        for norm in (1.0, math.inf, 3.0, math.nan):
            gauges.norm(torch.tensor(norm, dtype=torch.float64))
        read = gauges.read()  # 9
        assert read.grad_norm == 2.0
        assert read.data_wait == pytest.approx(4 / 9)
        assert read.memory_mib is not None
        assert 50 < read.memory_mib < 1e6
        again = Gauges(accelerator, gauges.norms)
        again.norm(torch.tensor(5.0))
        assert again.read().grad_norm == 3.0


def test_a_loader_that_fails_is_still_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with accelerator_for(TrainConfig(device="cpu")) as accelerator:
        gauges = Gauges(accelerator)
        with pytest.raises(ZeroDivisionError):
            list(gauges.watched(broken()))
        assert gauges.waited > 0


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_rows_have_the_gauges(colour_images: Path, tmp_path: Path, clip: float) -> None:
    result = train(config(colour_images, tmp_path / "run", clip_grad=clip))
    with RunFolder(result.run_folder).metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-4:] == ["images_per_second", "grad_norm", "memory_mib", "data_wait"]
    for row in rows:
        assert 0.05 < float(row["grad_norm"]) < 100  # before clipping
        assert 0 < float(row["data_wait"]) < 1
        assert float(row["memory_mib"]) > 50


def test_a_row_of_an_earlier_version_has_none() -> None:
    values = {"epoch": 1, "lr": 0.1, "seconds": 1.0, "images_per_second": 2.0}
    values |= {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    row = EpochRow.from_flat(values, Classification)
    assert (row.grad_norm, row.memory_mib, row.data_wait) == (None, None, None)
    assert EpochRow.from_flat(row.flat(), Classification) == row


def test_the_terminal_tells_of_a_wait_that_matters() -> None:
    figures = {metric.name: 0.5 for metric in (*Classification.running, *Classification.metrics)}
    said = io.StringIO()
    report = Reporter(Console(file=said, width=200), Classification, 3, 10)
    for wait in (0.09, 0.34):
        report.end_epoch(EpochRow(1, figures, figures, 0.1, 1.0, 100.0, 1.234, 2048.0, wait), best=False)
    report.end_epoch(EpochRow(1, figures, figures, 0.1, 1.0, 100.0), best=False)
    quiet, loud, old = said.getvalue().splitlines()
    assert "100 img/s  grad 1.23  2.0 GiB  ETA" in quiet
    assert "100 img/s  grad 1.23  2.0 GiB  34% waiting for data  ETA" in loud
    assert "100 img/s  ETA" in old


# --- trackers


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tracker of accelerate's registry that keeps everything in memory."""
    from accelerate import tracking

    class Notebook(tracking.GeneralTracker):
        name = "notebook"
        requires_logging_directory = True
        main_process_only = True
        made: ClassVar[list[Any]] = []

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            self.run_name, self.logging_dir = run_name, logging_dir
            self.config: dict[str, Any] = {}
            self.logged: list[tuple[int, dict[str, Any]]] = []
            self.finished = 0
            self.made.append(self)

        def start(self) -> None: ...

        @property
        def tracker(self) -> None: ...

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.config = values

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            assert step is not None
            self.logged.append((step, values))

        def finish(self) -> None:
            self.finished += 1

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    return Notebook


def test_a_tracker_gets_steps_epochs_and_the_configuration(colour_images: Path, tmp_path: Path, notebook: Any) -> None:
    train(config(colour_images, tmp_path / "run", trackers="notebook", log_every=4))  # 27 images: 6 steps an epoch
    (book,) = notebook.made
    assert book.logging_dir == str(tmp_path / "run" / "logs")
    assert (book.config["batch_size"], book.config["model"], book.config["data.dataset"]) == (
        5,
        "vmamba_nano",
        "folder",
    )
    assert all(isinstance(value, (bool, int, float, str)) for value in book.config.values())
    assert [step for step, _ in book.logged] == [4, 6, 10, 12]
    assert set(book.logged[0][1]) == {"step/loss", "step/accuracy", "step/lr", "step/images_per_second"}
    assert {"epoch/train_loss", "epoch/val_accuracy", "epoch/grad_norm", "epoch/data_wait"} <= set(book.logged[1][1])
    assert book.finished == 1
    # It goes on where it was, and the run is over even if it is broken off.
    train(TrainConfig(resume=tmp_path / "run", epochs=3))
    assert [step for step, _ in notebook.made[1].logged] == [16, 18]
    with pytest.raises(ConfigError):
        train(TrainConfig(resume=tmp_path / "run", epochs=1))


def test_trackers_that_cannot_be_used_are_refused_before_anything_is_written(
    colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    for named, words in [
        ("tensorboard", r"trackers='tensorboard': tensorboard is not installed: `pip install tensorboard`"),
        ("comet_ml", "`pip install comet-ml`"),
        ("tensorbord", r"'tensorbord' is unknown; legal: .*wandb.*did you mean 'tensorboard'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            train(config(colour_images, tmp_path / "run", trackers=named))
    assert not (tmp_path / "run").exists()
    assert trackers.tracker_names(None) == trackers.tracker_names(" , ") == []


def test_tensorboard(colour_images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(colour_images, tmp_path / "run", trackers="tensorboard, tensorboard", log_every=3))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "vmamba"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [3, 6, 9, 12]
    assert [event.step for event in events.Scalars("epoch/val_accuracy")] == [6, 12]
    with RunFolder(tmp_path / "run").metrics.open(newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("epoch/train_loss")] == pytest.approx(losses, rel=1e-6)
