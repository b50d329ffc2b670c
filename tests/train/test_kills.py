"""Trainings that are really killed, by signals, a full disk or SIGKILL, and go on to the undisturbed run's bits."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from killed_training import Done, Job, run_jobs
from run_cases import assert_same_run, metrics

#: Ten steps an epoch, five updates; every generator is drawn from.
WORDS = [
    *("--model_options", "{dims: [4, 8], depths: [1, 1], patch_size: 8}", "--device", "cpu"),
    *("--data.train_images", "80", "--data.image_size", "16", "--batch_size", "8", "--grad_accumulation", "2"),
    *("--ema_decay", "0.9", "--mixup", "0.2", "--cutmix", "0.5", "--drop_path_rate", "0.2", "--lr", "0.005"),
    *("--save_every_steps", "4", "--resume", "auto"),
]


def words(output: Path, *more: str, epochs: int = 4, workers: int = 0) -> list[str]:
    return [*WORDS, "--output", str(output), "--epochs", str(epochs), "--num_workers", str(workers), *more]


#: Bytes: weights are smaller, a state is larger.
HALF_A_STATE = 50_000
SIGNALS = {"SIGTERM": 143, "SIGUSR1": 138, "SIGINT": 130}


def jobs_of(root: Path) -> dict[str, list[Job]]:
    """By the name of a run below ``root``: the trainings that it goes through, one after the other."""

    def job(name: str, *more: str, workers: int = 0, **what: Any) -> Job:
        return {"words": words(root / name, *more, workers=workers), **what}  # type: ignore[typeddict-item]

    signals = {
        name: [job(name, "--save_every_steps", "0", at=("update", 8), signal=name), job(name)] for name in SIGNALS
    }
    return {
        "undisturbed": [job("undisturbed")],
        "killed": [
            job("killed", at=("update", 9)),
            job("killed", at=("half", 2)),
            job("killed", workers=2, at=("move", 3)),
            job("killed", at=("update", 6)),
            job("killed"),
        ],
        "early": [job("early", at=("half", 1)), job("early")],
        "full": [job("full", at=("update", 4)), job("full", largest_file=HALF_A_STATE), job("full")],
        **signals,
    }


class Trained:
    """What `jobs_of` came to."""

    def __init__(self, root: Path) -> None:
        jobs = jobs_of(root)
        done = iter(run_jobs([job for run in jobs.values() for job in run], root))
        self.root = root
        self.done = {name: [next(done) for _ in run] for name, run in jobs.items()}

    def goes_on(self, name: str, *statuses: int) -> list[Done]:
        """The trainings of a run, which ended so; the last, with the undisturbed run's bits."""
        done = self.done[name]
        assert [one["status"] for one in done] == [*statuses, 0], done
        assert_same_run(self.root / "undisturbed", self.root / name)
        assert not [path.name for path in (self.root / name).iterdir() if path.name.startswith(".")]
        return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All in one go, so that what a training imports is imported once."""
    return Trained(tmp_path_factory.mktemp("runs"))


def test_killed_in_an_epoch_in_a_write_and_between_files(trained: Trained) -> None:
    done = trained.goes_on("killed", *[-signal.SIGKILL] * 4)
    assert "new run" in done[0]["out"]
    assert "resumed after 1 of 4 epochs and" in done[1]["out"]


def test_killed_before_anything_is_saved_it_starts_again(trained: Trained) -> None:
    done = trained.goes_on("early", -signal.SIGKILL)
    assert "new run" in done[1]["out"]


@pytest.mark.parametrize("name", list(SIGNALS))
def test_a_signal_saves_at_the_end_of_the_step(trained: Trained, name: str) -> None:
    stopped, finished = trained.goes_on(name, SIGNALS[name])
    last = stopped["err"].strip().splitlines()[-1]
    said = stopped["out"] if name == "SIGINT" else last
    assert "1 of 4 epochs and 6 " in said
    assert f"vmamba train --resume {trained.root / name}" in said
    assert last == "vmamba: interrupted" or last.startswith(f"vmamba: stopped by {name}; ")
    assert "resumed after 1 of 4 epochs and 6 of 10 steps" in finished["out"]


def test_a_full_disk_is_one_line_and_what_was_saved_is_whole(trained: Trained) -> None:
    _, full, _ = trained.goes_on("full", -signal.SIGKILL, 2)
    run = trained.root / "full"
    assert len(full["err"].strip().splitlines()) == 1, full["err"]
    assert f"cannot write {run}/state.pt: File too large" in full["err"]
    assert f"make room, then go on with: vmamba train --resume {run}" in full["err"]


@pytest.mark.endless
@pytest.mark.timeout(3600)
def test_twenty_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hundred steps, killed from outside at twenty random moments of training, saves and measurements."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    (undisturbed,) = run_jobs([{"words": words(whole, epochs=20)}], tmp_path, 1800)
    assert undisturbed["status"] == 0, undisturbed
    seconds = sum(float(row["seconds"]) for row in metrics(whole))
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    # So often that the run is not finished before the last of them.
    jobs: list[Job] = [
        {"words": words(killed, epochs=20, workers=i % 3), "after": draw.uniform(0.0, seconds / 12)} for i in range(20)
    ]
    done = run_jobs([*jobs, {"words": words(killed, epochs=20)}], tmp_path, 1800)
    reached = [_reached(one) for one in done]
    with capsys.disabled():
        print(f"\nseed {seed}: the run went on from {', '.join(reached)}; undisturbed it took {seconds:.0f} s")
    assert [one["status"] for one in done] == [-signal.SIGKILL] * 20 + [0], done
    assert_same_run(whole, killed)


def _reached(done: Done) -> str:
    lines = [line for line in done["out"].splitlines() if line.startswith("resumed after")]
    return lines[0].removeprefix("resumed after ").partition(": ")[0] if lines else "the start"
