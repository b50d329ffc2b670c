"""Trainings that are really killed, by signals, a full disk or SIGKILL, and go on to the undisturbed run's bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from killed_training import Job, run_jobs
from run_cases import assert_same_run, metrics

from vmamba.train.run_folder import RunFolder

#: Ten steps an epoch, five updates; every generator is drawn from.
WORDS = [
    *("--model_options", "{dims: [4, 8], depths: [1, 1], patch_size: 8}", "--device", "cpu"),
    *("--data.train_images", "80", "--data.image_size", "16", "--batch_size", "8", "--grad_accumulation", "2"),
    *("--ema_decay", "0.9", "--mixup", "0.2", "--cutmix", "0.5", "--drop_path_rate", "0.2", "--lr", "0.005"),
    *("--save_every_steps", "4", "--resume", "auto"),
]


def words(output: Path, *more: str, epochs: int = 4, workers: int = 0) -> list[str]:
    return [*WORDS, "--output", str(output), "--epochs", str(epochs), "--num_workers", str(workers), *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps without any disturbance."""
    path = tmp_path_factory.mktemp("undisturbed")
    (done,) = run_jobs([{"words": words(path / "run")}], path)
    assert done["status"] == 0, done
    return path / "run"


def test_killed_in_an_epoch_in_a_write_and_between_files(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    jobs: list[Job] = [
        {"words": words(run), "at": ("update", 9)},
        {"words": words(run), "at": ("half", 2)},
        {"words": words(run, workers=2), "at": ("move", 3)},
        {"words": words(run), "at": ("update", 6)},
        {"words": words(run)},
    ]
    done = run_jobs(jobs, tmp_path)
    assert [one["status"] for one in done] == [-signal.SIGKILL] * 4 + [0], done
    assert "new run" in done[0]["out"]
    assert "resumed after 1 of 4 epochs and" in done[1]["out"]
    assert_same_run(whole, run)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_killed_before_anything_is_saved_it_starts_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_jobs([{"words": words(run), "at": ("half", 1)}, {"words": words(run)}], tmp_path)
    assert [one["status"] for one in done] == [-signal.SIGKILL, 0], done
    assert_same_run(whole, run)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_signal_saves_at_the_end_of_the_step(whole: Path, tmp_path: Path, name: str, status: int) -> None:
    run = tmp_path / "run"
    jobs: list[Job] = [
        {"words": words(run, "--save_every_steps", "0"), "at": ("update", 8), "signal": name},
        {"words": words(run)},
    ]
    stopped, finished = run_jobs(jobs, tmp_path)
    assert (stopped["status"], finished["status"]) == (status, 0), (stopped, finished)
    last = stopped["err"].strip().splitlines()[-1]
    said = stopped["out"] if name == "SIGINT" else last
    assert "1 of 4 epochs and 6 " in said
    assert f"vmamba train --resume {run}" in said
    assert last == "vmamba: interrupted" or last.startswith(f"vmamba: stopped by {name}; ")
    assert "resumed after 1 of 4 epochs and 6 of 10 steps" in finished["out"]
    assert_same_run(whole, run)


def test_a_full_disk_is_one_line_and_what_was_saved_is_whole(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = RunFolder(whole).state.stat().st_size
    jobs: list[Job] = [
        {"words": words(run), "at": ("update", 4)},
        {"words": words(run), "largest_file": size // 2},
        {"words": words(run)},
    ]
    _, full, finished = run_jobs(jobs, tmp_path)
    assert full["status"] == 2, full
    assert len(full["err"].strip().splitlines()) == 1, full["err"]
    assert f"cannot write {run}/state.pt: File too large" in full["err"]
    assert f"make room, then go on with: vmamba train --resume {run}" in full["err"]
    assert finished["status"] == 0, finished
    assert_same_run(whole, run)


@pytest.mark.endless
@pytest.mark.timeout(3600)
def test_twenty_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hundred steps, killed from outside at twenty random moments of training, saves and measurements."""
    paths = [tmp_path / name for name in ("whole", "killed")]
    began = time.monotonic()
    (undisturbed,) = run_jobs([{"words": words(paths[0], epochs=20)}], tmp_path, 900)
    seconds = time.monotonic() - began
    assert undisturbed["status"] == 0, undisturbed
    draw, kills, tries, reached = random.Random(), 0, 0, []
    while kills < 20:
        tries += 1
        assert tries < 100, f"{kills} kills in {tries} tries"
        job: Job = {"words": words(paths[1], epochs=20, workers=tries % 3), "after": draw.uniform(0.0, seconds / 15)}
        (done,) = run_jobs([job], tmp_path, 900)
        if done["status"] == 0:  # it finished before: more epochs would not be the same run, so start another
            assert_same_run(*paths)
            paths[1] = tmp_path / f"killed{tries}"
            continue
        assert done["status"] == -signal.SIGKILL, done
        kills += 1
        reached.append(_reached(done))
    (finished,) = run_jobs([{"words": words(paths[1], epochs=20)}], tmp_path, 900)
    assert finished["status"] == 0, finished
    assert_same_run(*paths)
    with capsys.disabled():
        print(f"\n{kills} kills in {tries} tries, resumed at {reached}; undisturbed {seconds:.0f} s")


def _reached(done: Any) -> str:
    lines = [line for line in done["out"].splitlines() if line.startswith("resumed after")]
    return lines[0].removeprefix("resumed after ").partition(" epochs")[0] if lines else "start"


def test_every_epoch_is_measured_once(whole: Path) -> None:
    assert [row["epoch"] for row in metrics(whole)] == ["1", "2", "3", "4"]
