"""What the guide promises under "Never lose work": saves in epochs, damaged ones, dead processes, faults, replay."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_cases import assert_equal, assert_same_run
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from vmamba.data import Augmentation, DataConfig, TransformedImages
from vmamba.errors import CheckpointError, ConfigError, OutputError, TrainingError, TrainingStopped
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.train.accelerator import accelerator_for
from vmamba.train.folder import states
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.loop.guard import FiniteGuard
from vmamba.train.loop.replay import replay
from vmamba.train.loop.sampler import EpochSampler, SeededSamples
from vmamba.train.loop.trainer import Trainer
from vmamba.train.loop.update import Updater
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig
from vmamba.train.signals import StopSignals
from vmamba.train.watch import Watch


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For all trainings that are compared, `whole` among them: sums of another number of threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings."""
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)


def tiny(images: Path, output: Path | None = None, **fields: Any) -> TrainConfig:
    """27 training images: nine steps and five updates an epoch; every generator is drawn from."""
    values: dict[str, Any] = {
        "model_options": {"dims": [4, 8], "depths": [1, 1], "patch_size": 4},
        "data": DataConfig("folder", images, image_size=16),
        "augmentation": Augmentation((0.6, 1.0), hflip=0.5, color_jitter=0.2, random_erasing=0.2),
        "epochs": 3,
        "batch_size": 3,
        "grad_accumulation": 2,
        "lr": 5e-3,
        "mixup": 0.2,
        "cutmix": 0.5,
        "ema_decay": 0.9,
        "drop_path_rate": 0.3,
        "num_workers": 0,
        "device": "cpu",
        "output": output,
    }
    return TrainConfig(**{**values, **fields})


@pytest.fixture(scope="module")
def whole(colour_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(tiny(colour_images, path))
    return path


#: Wide enough to have matrices for Muon.
WIDER = {"dims": [16, 24], "depths": [1, 1], "patch_size": 4}


class At:
    """Calls ``act`` before the ``count``-th update."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int, act: Any) -> None:
        self.left = count
        plain = Updater.update

        def update(*args: Any) -> None:
            self.left -= 1
            if self.left == 0:
                act()
            plain(*args)

        patch.setattr(Updater, "update", update)


class Killed(BaseException):
    """The process is gone: nobody catches this."""


def kill() -> None:
    raise Killed


def killed_at(patch: pytest.MonkeyPatch, config: TrainConfig, update: int) -> None:
    with patch.context() as own:
        At(own, update, kill)
        with pytest.raises(Killed):
            train(config)


# --- inside epochs


def test_muon_goes_on_inside_an_epoch(colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(colour_images, tmp_path / "whole", optimizer="muon", model_options=WIDER, save_every_steps=3)
    train(config)
    path = tmp_path / "run"
    killed_at(monkeypatch, replace(config, output=path), 9)
    assert any(
        "momentum_buffer" in state for state in RunFolder(path).read_state()["engine"]["optimizer"]["state"].values()
    )
    train(TrainConfig(resume=path))
    assert_same_run(tmp_path / "whole", path)


def test_loading_processes_live_as_long_as_the_training(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def act(trainer: Trainer, *args: Any) -> Any:
        found = plain(trainer, *args)
        iterator = trainer.train_loader._iterator
        seen.append([process.pid for process in iterator._workers])
        return found

    plain = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", act)
    path = tmp_path / "run"
    train(tiny(colour_images, path, num_workers=2))
    assert len(seen) == 3
    assert len(seen[0]) == 2
    assert seen[0] == seen[1] == seen[2]
    assert_same_run(whole, path)
    assert not any(process.pid in seen[0] for process in multiprocessing.active_children())


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_killed_inside_an_epoch_the_number_of_loading_processes_may_change(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    path = tmp_path / "run"
    killed_at(monkeypatch, tiny(colour_images, path, save_every_steps=3, num_workers=before), 9)
    inside = RunFolder(path).read_state()["engine"]["inside"]
    assert (inside["epoch"], inside["step"]) == (1, 4)  # three steps later, at the next update
    torch.rand(3)
    random.random()
    np.random.rand()
    train(TrainConfig(resume=path, num_workers=after))
    assert_same_run(whole, path)


def test_samples_depend_on_seed_epoch_and_index_alone() -> None:
    class Draws:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[int, float, float, float]:
            return index, random.random(), np.random.rand(), torch.rand(()).item()

    sampler = EpochSampler(6, seed=1)
    sampler.epoch = 2
    samples = SeededSamples(Draws(), seed=1)
    state = random.getstate(), np.random.rand, torch.get_rng_state()
    seen = [samples[key] for key in sampler]
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert len({draws[1:] for draws in seen}) == 6
    for workers in (0, 2):
        loader = DataLoader(samples, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list)
        assert [sample for batch in loader for sample in batch] == seen
    other = SeededSamples(Draws(), seed=2)
    assert all(other[key][1:] != samples[key][1:] for key in sampler)
    assert samples[3, 0][1:] != samples[2, 0][1:]


def test_a_signal_in_a_measurement_keeps_the_epoch_that_was_trained(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    plain, calls = Trainer.evaluate, []

    def evaluate(trainer: Trainer, *args: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(trainer, *args, **named)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate)
        with pytest.raises(TrainingStopped, match=r"stopped by SIGTERM; 1 of 3 epochs and 9 of 9 steps are saved"):
            train(tiny(colour_images, path))
    assert signal.getsignal(signal.SIGTERM) is before
    train(TrainConfig(resume=path))
    assert_same_run(whole, path)


def test_the_clock_and_the_steps_ask_for_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vmamba.train.watch.time.monotonic", lambda: now[0])
    alone = SimpleNamespace(num_processes=1)
    config = SimpleNamespace(save_every_steps=5, save_every_minutes=2.0)
    watch = Watch(config, alone, StopSignals(), every=1)  # type: ignore[arg-type]
    assert [watch.after_update(2).save for _ in range(3)] == [False, False, True]
    watch.saved()
    now[0] = 119.0
    assert not watch.after_update(2).save
    now[0] = 120.0
    assert watch.after_update(2).save
    watch.saved()
    assert not watch.after_update(2).save
    assert not watch.after_batch().stop


# --- damaged states


@pytest.mark.parametrize("damage", ["cut short", "flipped", "empty"])
def test_a_damaged_state_is_passed_over_with_one_line(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = tmp_path / "run"
    killed_at(monkeypatch, tiny(colour_images, path, save_every_steps=3), 13)
    folder = RunFolder(path)
    assert [state.name for state in folder.states()] == ["state.pt", "state.1.pt"]
    content = bytearray(folder.state.read_bytes())
    if damage == "flipped":
        for place in range(len(content) // 2, len(content) // 2 + 256):  # more than the gap between two tensors
            content[place] ^= 1
    folder.state.write_bytes({"cut short": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    said = io.StringIO()
    train(TrainConfig(resume=path), Console(file=said, width=500))
    lines = [line for line in said.getvalue().splitlines() if "cannot be read" in line]
    assert len(lines) == 1
    assert lines[0].endswith("going on from state.1.pt, which was saved before it")
    assert_same_run(whole, path)


def test_an_earlier_state_finds_its_own_best_weights(
    colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch is better than the one before, so that each state names other weights."""
    worth = iter(range(100))
    monkeypatch.setattr("vmamba.train.course.rank", lambda row, *_: (row.epoch,))
    assert next(worth) == 0
    whole, path = tmp_path / "whole", tmp_path / "run"
    for place in (whole, path):
        train(tiny(colour_images, place, keep_last=3))
    folder = RunFolder(path)
    assert [state.name for state in folder.states()] == ["state.pt", "state.1.pt", "state.2.pt"]
    for state in folder.states()[:2]:
        state.write_bytes(b"")
    train(TrainConfig(resume=path))
    assert_same_run(whole, path)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_states_are_kept_as_were_asked_for(colour_images: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "run"
    train(tiny(colour_images, path, keep_last=keep, save_every_steps=2, epochs=2))
    folder = RunFolder(path)
    assert len(folder.states()) == keep
    positions = []
    for state in folder.states():
        content = states.read_tensors(state)
        positions.append((len(content["rows"]), (content["engine"]["inside"] or {"step": 0})["step"]))
    assert positions == [(2, 0), (1, 8), (1, 6)][:keep]


def test_resume_auto(colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    config = tiny(colour_images, path, resume=Path("auto"), save_every_steps=3)
    path.mkdir()
    (path / "config.yaml").write_text("left by a run that was killed before its first state")
    (path / ".state.pt.0123456789ab.pt").write_bytes(b"half")
    killed_at(monkeypatch, config, 7)
    train(config)
    assert_same_run(whole, path)
    with pytest.raises(ConfigError, match=r"lr is 0\.005 there, 0\.1 now"):
        train(replace(config, lr=0.1))
    with pytest.raises(ConfigError, match="give output"):
        TrainConfig(resume=Path("auto"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "letters.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        train(replace(config, output=other))


# --- mishaps


def test_a_full_disk_while_a_state_is_written(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    plain, calls = torch.save, []

    def save(content: Any, file: Any) -> None:
        calls.append(None)
        if len(calls) == 4:
            file.write(b"some of it")
            raise OSError(28, "No space left on device")
        plain(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OutputError, match=r"state\.pt: No space left on device.*whole: make room, then go on with"):
            train(tiny(colour_images, path, save_every_steps=3))
    assert not [entry for entry in path.iterdir() if entry.name.startswith(".")]
    assert len(RunFolder(path).states()) == 2
    train(TrainConfig(resume=path))
    assert_same_run(whole, path)


def test_a_dead_loading_process_is_one_clear_error(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    plain, read = TransformedImages.__getitem__, []

    def get(images: TransformedImages, index: int) -> Any:
        read.append(index)
        if get_worker_info() is not None and len(read) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(TransformedImages, "__getitem__", get)
        with pytest.raises(TrainingError, match=r"a process that loads images is gone .*resume"):
            train(tiny(colour_images, path, num_workers=1, save_every_steps=2))
    train(TrainConfig(resume=path))
    assert_same_run(whole, path)


# --- values that are not finite


class Spoilt:
    """Makes the loss of chosen calls, counted from 1, NaN; ``losses`` are what they were."""

    def __init__(self, patch: pytest.MonkeyPatch, *calls: int) -> None:
        self.losses: list[float] = []
        plain = CrossEntropy.loss

        def loss(objective: CrossEntropy, model: Any, batch: Any) -> Any:
            result = plain(objective, model, batch)
            self.losses.append(result.loss.item())
            return replace(result, loss=result.loss * math.nan) if len(self.losses) in calls else result

        patch.setattr(CrossEntropy, "loss", loss)


def test_a_loss_that_is_nan_can_be_replayed(
    colour_images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoilt = Spoilt(patch, 9 + 4)  # the second batch of the second update of the second epoch
        with pytest.raises(TrainingError, match=r"the loss is nan at step 4 of epoch 2\..*replay\.pt holds.*lower lr"):
            train(tiny(colour_images, path, save_every_steps=2))
    again = replay(path)
    assert (again.epoch, again.steps) == (2, (3, 4))
    assert list(again.losses) == spoilt.losses[-2:]  # to the bit
    assert math.isfinite(again.gradient_norm)
    assert [len(batch) for batch in again.samples] == [3, 3]
    before = RunFolder(path).read_state()["engine"]  # saved after the update before
    assert before["inside"]["step"] == 2
    kept = states.read_tensors(path / "replay.pt")
    assert_equal(dict(kept["model"]), dict(before["model"]))
    assert_equal(kept["processes"][0]["rng"], before["rng"][0])
    with monkeypatch.context() as patch:
        Spoilt(patch, 2)
        assert math.isnan(replay(path).losses[1])
    with pytest.raises(ConfigError, match="process=1, but 1 trained"):
        replay(path, process=1)
    with pytest.raises(CheckpointError, match=r"has no replay\.pt"):
        replay(whole)
    train(TrainConfig(resume=path))
    assert_same_run(whole, path) if not (path / "replay.pt").unlink() else None


def test_updates_that_are_left_out_touch_nothing(
    colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    seen: list[tuple[bool, bool]] = []
    plain = Updater.update

    def update(updater: Updater, model: Any, number: int, out: Tensor) -> None:
        def now() -> Any:
            return [t.clone() for t in (*model.state_dict().values(), *updater.ema.module.state_dict().values())], [
                {k: v.clone() for k, v in state.items()} for state in updater.optimizer.state.values()
            ]

        before = now()
        plain(updater, model, number, out)
        try:
            assert_equal(before, now())
            seen.append((bool(out), True))
        except AssertionError:
            seen.append((bool(out), False))

    said = io.StringIO()
    with monkeypatch.context() as patch:
        Spoilt(patch, 4, 20)
        patch.setattr(Updater, "update", update)
        result = train(tiny(colour_images, path, skip_nonfinite=2), Console(file=said, width=300))
    left_out = [number for number, (out, _) in enumerate(seen) if out]
    assert left_out == [1, 10]
    assert all(same == out for out, same in seen)
    lines = [line for line in said.getvalue().splitlines() if "is left out" in line]
    assert lines == [
        "the loss is nan at step 4 of epoch 1; this update is left out (at most 2 are)",
        "the loss is nan at step 2 of epoch 3; this update is left out (at most 2 are)",
    ]
    assert all(math.isfinite(row["train_loss"]) for row in RunFolder(path).read_state()["rows"])
    assert RunFolder(path).read_state()["engine"]["left_out"] == 2
    assert result.epochs == 3
    with monkeypatch.context() as patch:
        Spoilt(patch, 4, 20)
        with pytest.raises(TrainingError, match="the loss is nan at step 2 of epoch 3"):
            train(tiny(colour_images, tmp_path / "one", skip_nonfinite=1))


def test_a_guard_that_is_read_late_knows_the_update_and_its_generators(colour_images: Path) -> None:
    """As on a GPU: everything after the fatal update is left out too, and running statistics are put back."""
    config = tiny(colour_images).resolved()
    norm = torch.nn.BatchNorm1d(2)
    with accelerator_for(config) as accelerator:
        guard = FiniteGuard(1, accelerator)
        out, generators = [], []
        for update in range(6):
            generators.append(torch.get_rng_state())
            guard.begin(norm)
            bad = update in (1, 3)
            before = norm.running_mean.clone()
            norm(torch.rand(4, 2) * (math.nan if bad else 1.0))
            guard.see(update, "loss", torch.tensor(1.0))
            guard.see(update, "gradient norm", torch.tensor(math.inf if bad else 1.0))
            out.append(bool(guard.judge()))
            assert torch.equal(norm.running_mean, before) == out[-1]
    assert out == [False, True, False, True, True, True]
    first, second = guard.look(epoch=4)
    assert (first.step, first.fatal, second.step, second.fatal) == (1, False, 3, True)
    assert str(second) == "the gradient norm is inf at step 4 of epoch 5"
    assert torch.equal(second.rng["torch"], generators[3])


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_decided_on_the_device(colour_images: Path, optimizer: str, leave_out: bool) -> None:
    """The way of a GPU, with the CPU's fused AdamW, against the way of a CPU."""
    config = tiny(colour_images, optimizer=optimizer, model_options=WIDER).resolved()
    found = []
    for on_device in (False, True):
        with accelerator_for(config) as accelerator:
            trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
            for group in trainer.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
            trainer.updater.on_device = on_device
            for number in (1, 2):
                for parameter in trainer.model.parameters():
                    parameter.grad = torch.full_like(parameter, math.nan if number == 2 and leave_out else 0.1)
                out = torch.tensor(number == 2 and leave_out)
                trainer.updater.update(trainer.model, 9 + number, out)
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
            steps = {float(state["step"]) for state in trainer.optimizer.state.values()}
            assert steps == {1.0 if leave_out else 2.0}
            found.append({**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.weights().items()}})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-7)


def test_a_finished_copy_is_still_a_run(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    train(TrainConfig(resume=copy))
    assert_same_run(whole, copy)
