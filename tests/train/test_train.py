"""Training: the run's folder, going on with it to the same result, and what is refused before anything is written."""

from __future__ import annotations

import copy
import io
import math
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from run_cases import assert_equal, assert_same_run, metrics, timeless
from torch import Tensor, nn

import vmamba
from vmamba.data import Augmentation, DataConfig, TransformedImages, load_splits
from vmamba.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from vmamba.given import given_fields
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.tasks.classification.scores import ScoreCounter
from vmamba.tasks.trained import load_trained
from vmamba.train.accelerator import accelerator_for
from vmamba.train.folder.resume import resumed_config
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.loop.guard import FiniteGuard
from vmamba.train.loop.trainer import Trainer
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

#: Columns that differ from one run to the next.

TINY: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "patch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small for two threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16×16 pictures that differ in colour, 15 each."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.RandomState(0)
    for k, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(15):
            pixels = random.randint(0, 120, (16, 16, 3))
            pixels[..., 2 - k] += 110
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here; the `finished` run, made before this, draws for all."""
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)


def tiny(tree: Path, output: Path | None = None, **fields: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model_options": TINY,
        "data": DataConfig("folder", tree, image_size=16),
        "augmentation": Augmentation((0.6, 1.0), hflip=0.5, color_jitter=0.2, random_erasing=0.2),
        "epochs": 4,
        "batch_size": 6,
        "lr": 5e-3,
        "num_workers": 0,
        "device": "cpu",
        "output": output,
    }
    return TrainConfig(**{**values, **fields})


@pytest.fixture(scope="module")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path, Any, str]:
    """A finished run: every generator is drawn from, weights are averaged, gradients accumulated."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny(tree, path, mixup=0.2, cutmix=0.5, ema_decay=0.9, grad_accumulation=2, drop_path_rate=0.3)
    said = io.StringIO()
    result = train(config, Console(file=said, width=200))
    return config, path, result, said.getvalue()


# --- the folder


def test_run_folder_is_complete(finished: Any) -> None:
    config, path, result, _ = finished
    names = {
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "confusion.png",
        "best.safetensors",
        "last.safetensors",
        "state.pt",
        "state.1.pt",
    }
    assert {p.name for p in path.iterdir()} - {"best.1.safetensors"} == names  # that one if there was a best before
    rows = metrics(path)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert (result.epochs, result.best_epoch) == (4, int(best["epoch"]))
    assert result.best_val["accuracy"] == float(best["val_accuracy"])
    stored = RunFolder(path).read_config()
    assert stored == replace(config.resolved(), output=path)
    assert stored.resolved() == stored
    assert stored.label_smoothing == 0.1  # filled in from the data set's recipe


def test_no_more_loading_processes_than_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig("folder", tmp_path))
    for cores, want in [(1, 1), (2, 2), (64, 4)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert config.resolved().num_workers == want
        assert replace(config, num_workers=9).resolved().num_workers == 9  # what is given stands


def test_trained_model_comes_back_and_repeats_its_accuracy(finished: Any) -> None:
    config, path, result, _ = finished
    splits = load_splits(config.data)
    assert splits.test is not None
    for place in (path, path / "best.safetensors"):
        trained = load_trained(place)
        assert (trained.name, trained.task.classes) == ("vmamba_nano", ("blue", "green", "red"))
        assert trained.preprocessing == splits.preprocessing
        assert not trained.model.training
        images = TransformedImages(splits.test, trained.preprocessing.eval_transform())
        with torch.no_grad():
            right = [int(trained.model(image[None]).argmax()) == label for image, label in images]
        assert sum(right) / len(right) == result.test.figures["accuracy"]
    meta = vmamba.read_weights(path / "last.safetensors").metadata
    assert (meta["format"], meta["epoch"], meta["vmamba_version"]) == ("vmamba", "4", vmamba.__version__)


def test_saved_weights_are_the_moving_average(finished: Any) -> None:
    _, path, _, _ = finished
    engine = RunFolder(path).read_state()["engine"]
    last = vmamba.read_weights(path / "last.safetensors").state_dict
    assert_equal(last, dict(engine["ema"]))
    assert not torch.equal(last["classifier.head.weight"], engine["model"]["classifier.head.weight"])


def test_learning_rate_warms_up_and_falls_along_a_cosine(tree: Path, tmp_path: Path) -> None:
    config = tiny(tree, tmp_path / "run", epochs=8, warmup_epochs=2, lr=1e-2, min_lr=1e-4).resolved()
    with accelerator_for(config) as accelerator:
        trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
        seen = [trainer.optimizer.param_groups[0]["lr"]]
        for update in range(1, 8 * trainer.updates_per_epoch + 1):
            trainer.scheduler.step_update(update)
            seen.append(trainer.optimizer.param_groups[0]["lr"])
    warm = 2 * trainer.updates_per_epoch
    want = [1e-4 + (1e-2 - 1e-4) * t / warm for t in range(warm)]
    total = 6 * trainer.updates_per_epoch
    want += [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * t / total)) / 2 for t in range(total + 1)]
    np.testing.assert_allclose(seen, want, rtol=1e-9)


# --- going on


class Interrupt:
    """Raises KeyboardInterrupt when the ``count``-th image is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left = count
        plain = TransformedImages.__getitem__

        def read(images: TransformedImages, index: int) -> tuple[Tensor, int]:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return plain(images, index)

        monkeypatch.setattr(TransformedImages, "__getitem__", read)


@pytest.mark.parametrize("image", [5, 36 * 2 + 10, 36 * 3 + 30], ids=["first epoch", "in training", "in validation"])
def test_interrupted_and_resumed_is_bitwise_the_same(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    config, whole, result, _ = finished
    path = tmp_path / "run"
    said = io.StringIO()
    with monkeypatch.context() as patch:
        Interrupt(patch, image)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, output=path), Console(file=said, width=200))
    assert f"vmamba train --resume {path}" in said.getvalue()
    load_trained(path / "last.safetensors")
    torch.rand(7)  # whatever the generators are at now must not matter
    resumed = train(TrainConfig(resume=path))
    assert (resumed.epochs, resumed.best_epoch, resumed.test) == (4, result.best_epoch, result.test)
    assert_same_run(whole, path)


def test_resumed_between_saves_goes_back_to_the_last_one(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, _, _ = finished
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        Interrupt(patch, 36 * 3 + 5)  # two epochs of 27 + 9 images are saved, the third is not
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, output=path, save_every=2))
    assert len(metrics(path)) == 2
    # As if the third epoch had been better than those before, and been kept; the next save would have put it in place.
    shutil.copy(whole / "best.safetensors", RunFolder(path).next_best)
    train(TrainConfig(resume=path))
    assert_same_run(whole, path)


class Killed(BaseException):
    """The process is gone: nobody catches this."""


def test_a_save_that_is_stopped_anywhere_is_undone_or_finished(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file takes its place by a move: the process is killed before each of those that belong to a save."""
    plain = os.replace
    moved: list[str] = []

    def kill_before(count: float) -> Any:
        moved.clear()

        def replace(source: Any, target: Any) -> None:
            if len(moved) == count:
                raise Killed
            moved.append(Path(target).name)
            plain(source, target)

        return replace

    config = tiny(tree, epochs=2, mixup=0.2, lr=2e-3, select_by="loss")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill_before(math.inf))
        result = train(replace(config, output=tmp_path / "whole"))
    first = ["config.yaml", "state.pt", "last.safetensors", "metrics.csv"]
    second = ["best.next.safetensors", "state.1.pt", "state.pt", "best.safetensors", "last.safetensors", "metrics.csv"]
    third = [*second[:3], "best.1.safetensors", *second[3:]]
    assert result.best_epoch == 2  # so that the last save moves all
    assert moved == [*first, *second, *third]
    for count in [len(first) - 1, *range(len(moved) - len(third), len(moved))]:
        path = tmp_path / f"killed{count}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill_before(count))
            with pytest.raises(Killed):
                train(replace(config, output=path))
        load_trained(path)
        train(TrainConfig(resume=path))
        assert_same_run(tmp_path / "whole", path)
        assert not RunFolder(path).next_best.exists()


def test_best_weights_that_the_state_does_not_name_are_refused(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(finished[1], path)
    best, last = RunFolder(path).best, RunFolder(path).last
    other = tmp_path / "other.safetensors"
    vmamba.save_weights(other, vmamba.read_weights(last).state_dict, {})
    shutil.copy(other, best)
    with pytest.raises(CheckpointError, match=r"best\.safetensors is not the file that state\.pt names"):
        train(TrainConfig(resume=path))
    best.unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors is missing"):
        train(TrainConfig(resume=path))


def test_finished_run_resumes_to_itself_and_on_with_more_epochs(finished: Any, tmp_path: Path) -> None:
    _, whole, result, _ = finished
    path = tmp_path / "copy"
    shutil.copytree(whole, path)
    again = train(TrainConfig(resume=path))
    assert (again.epochs, again.test) == (4, result.test)
    assert_same_run(whole, path)
    more = train(TrainConfig(resume=path, epochs=6))
    assert more.epochs == 6
    assert timeless(metrics(path))[:4] == timeless(metrics(whole))
    assert RunFolder(path).read_config().epochs == 6
    with pytest.raises(ConfigError, match=r"epochs=5, but .* has done 6"):
        train(TrainConfig(resume=path, epochs=5))


def test_resume_refuses_other_settings_and_other_data(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "tree"
    shutil.copytree(tree, data)
    path = tmp_path / "run"
    config = tiny(data, path, epochs=1)
    train(config)
    with pytest.raises(ConfigError, match=r"lr is 0\.005 there, 0\.1 now; seed is 0 there, 3 now"):
        train(TrainConfig(resume=path, lr=0.1, seed=3))
    with pytest.raises(ConfigError, match=r"data\.image_size is 16 there, 32 now"):
        train(TrainConfig(resume=path, data=DataConfig("folder", data, image_size=32)))
    with pytest.raises(ConfigError, match="a run goes on in its own folder"):
        train(TrainConfig(resume=path, output=tmp_path / "other"))
    settings = RunFolder(path).config
    plain = settings.read_text()
    settings.write_text(plain.replace("lr: 0.005", "lr: 0.006"))
    with pytest.raises(ConfigError, match=r"has been changed since .* lr was 0\.005, is 0\.006"):
        train(TrainConfig(resume=path))
    settings.write_text(plain)
    (data / "red" / "3.png").unlink()
    with pytest.raises(DataError, match="its data have changed"):
        train(TrainConfig(resume=path))
    with pytest.raises(ConfigError, match=r"is .* a run's folder"):
        train(TrainConfig(resume=tmp_path / "nowhere"))


def test_what_is_given_counts_even_where_it_is_the_default(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    start = tiny(tree, save_every=5, seed=3, grad_accumulation=2, augmentation=Augmentation(hflip=0.5))
    RunFolder(path).write_config(replace(start, output=path).resolved())
    now = resumed_config(TrainConfig(resume=path, save_every=1, device="auto"))
    assert (now.save_every, now.device, now.seed) == (1, "auto", 3)
    with pytest.raises(ConfigError, match=r"grad_accumulation is 2 there, 1 now; seed is 3 there, 0 now"):
        resumed_config(TrainConfig(resume=path, seed=0, grad_accumulation=1))
    # Through replace, by position, in the parts, and by None, which stands for nothing given.
    again = TrainConfig(resume=path, epochs=4)
    assert resumed_config(replace(again, save_every=1)).save_every == 1
    assert resumed_config(replace(again, epochs=6, lr=None)).save_every == 5
    with pytest.raises(ConfigError, match="seed is 3 there, 0 now"):
        resumed_config(replace(again, seed=0))
    with pytest.raises(ConfigError, match=r"model is 'vmamba_nano' there, 'vmamba_tiny_s1l8' now"):
        resumed_config(TrainConfig("vmamba_tiny_s1l8", resume=path))
    with pytest.raises(ConfigError, match=r"augmentation\.hflip is 0\.5 there, 0\.0 now"):
        resumed_config(replace(again, augmentation=Augmentation(hflip=0.0)))
    moved = resumed_config(TrainConfig(resume=path, data=DataConfig("folder", tmp_path, verify=True)))
    assert (moved.data.data_dir, moved.data.image_size) == (tmp_path, 16)


def test_given_fields_survive_copies() -> None:
    config = TrainConfig("vmamba_nano", seed=0, data=DataConfig(seed=0))
    for same in (config, copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert given_fields(same) == {"model", "seed", "data"}
        assert given_fields(same.data) == {"seed"}
    assert given_fields(replace(config, lr=1.0)) == {"model", "seed", "data", "lr"}
    assert "given" not in config.to_dict()


def test_broken_runs_are_named(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(finished[1], path)
    states = RunFolder(path).states()
    for state in states:
        state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read .*; no earlier state is whole"):
        train(TrainConfig(resume=path))
    for state in states:
        state.unlink()
    with pytest.raises(CheckpointError, match=r"has no state\.pt"):
        train(TrainConfig(resume=path))
    (path / "best.safetensors").unlink()
    assert load_trained(path).weights_path.name == "last.safetensors"
    (path / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither best\.safetensors nor last\.safetensors"):
        load_trained(path)
    vmamba.save_weights(path / "bare.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="does not say which model"):
        load_trained(path / "bare.safetensors")


# --- mishaps


def test_nan_loss_stops_and_keeps_the_last_good_weights(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    calls = iter(range(10_000))
    plain = nn.CrossEntropyLoss.forward

    def forward(self: nn.CrossEntropyLoss, logits: Tensor, target: Tensor) -> Tensor:
        return plain(self, logits, target) * (math.nan if next(calls) == 5 + 2 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(nn.CrossEntropyLoss, "forward", forward)
        with pytest.raises(TrainingError, match=r"the loss is nan at step 3 of epoch 2\. .*lower lr"):
            train(tiny(tree, path))
    assert all(value.isfinite().all() for value in load_trained(path).model.state_dict().values())
    assert train(TrainConfig(resume=path)).epochs == 4


def test_disk_full_is_an_output_error(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = tmp_path / "run"
    plain = os.replace
    calls = iter(range(10_000))

    def full(source: Any, target: Any) -> None:
        if next(calls) > 8:
            raise OSError(28, "No space left on device")
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="No space left on device"):
            train(tiny(tree, path))
    assert not [p for p in path.iterdir() if p.name.startswith(".")]
    assert train(TrainConfig(resume=path)).epochs == 4


PLAIN = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "none", 0.0)


@pytest.mark.parametrize(("whole", "part"), [(12, 6), (10, 5)], ids=["12,12,3", "10,10,7"])
def test_gradient_accumulation_is_one_large_batch(
    tree: Path, monkeypatch: pytest.MonkeyPatch, whole: int, part: int
) -> None:
    """27 images: 12, 12, 3 against 6+6, 6+6, 3; 10, 10, 7 against 5+5, 5+5, 5+2: each image weighs the same."""
    norms: list[float] = []
    plain = FiniteGuard.see

    def see(guard: FiniteGuard, step: int, name: str, value: Tensor) -> None:
        if name == "gradient norm":
            norms.append(value.item())
        plain(guard, step, name, value)

    monkeypatch.setattr(FiniteGuard, "see", see)
    for batch_size, accumulation in ((whole, 1), (part, 2)):
        config = tiny(
            tree, batch_size=batch_size, grad_accumulation=accumulation, augmentation=PLAIN, drop_path_rate=0.0
        ).resolved()
        with accelerator_for(config) as accelerator:
            trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
            trainer.train_epoch(0)
            assert trainer.updates == 3
    np.testing.assert_allclose(norms[:3], norms[3:], rtol=2e-3)


@pytest.mark.parametrize(("batch_size", "accumulation", "updates"), [(13, 2, 2), (2, 4, 4), (26, 1, 2)])
def test_a_last_batch_of_one_mixed_image_is_learnt_and_nothing_is_pending(
    tree: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, accumulation: int, updates: int
) -> None:
    """27 images leave one over in each of these sizes; timm's Mixup wants pairs."""
    config = tiny(tree, batch_size=batch_size, grad_accumulation=accumulation, mixup=0.8, cutmix=1.0).resolved()
    learnt: list[int] = []
    plain = CrossEntropy.loss

    def loss(self: CrossEntropy, model: nn.Module, batch: Any) -> Any:
        result = plain(self, model, batch)
        assert len(batch[0]) == len(batch[1]) == len(batch[2]) == result.count
        learnt.append(result.count)
        return result

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    with accelerator_for(config) as accelerator:
        trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
        for epoch in range(2):
            learnt.clear()
            trainer.train_epoch(epoch)
            assert (sum(learnt), learnt[-1]) == (27, 1)
            assert trainer.updates == (epoch + 1) * updates
            assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_mixup_of_an_odd_number_leaves_one_as_it_is() -> None:
    objective = CrossEntropy(replace(TrainConfig().resolved(), mixup=1.0, label_smoothing=0.0), 5)
    images, targets = torch.randn(5, 1, 2, 2), torch.arange(5)
    mixed, labels, shares = objective.prepare((images.clone(), targets))
    torch.testing.assert_close(mixed[0], images[0])
    torch.testing.assert_close(shares[0], torch.eye(5)[0])
    torch.testing.assert_close(mixed[1:], torch.einsum("ij,jchw->ichw", shares, images)[1:])
    torch.testing.assert_close(mixed.sum(0), images.sum(0))
    assert torch.equal(labels, targets)


def test_bf16_trains_and_fp16_is_refused_on_cpu(tree: Path, tmp_path: Path) -> None:
    result = train(tiny(tree, tmp_path / "bf16", mixed_precision="bf16", epochs=1))
    assert math.isfinite(float(metrics(result.run_folder)[0]["train_loss"]))
    with pytest.raises(ConfigError, match=r"fp16.*(needs a GPU|requires a GPU)"):
        train(tiny(tree, tmp_path / "fp16", mixed_precision="fp16"))
    assert not (tmp_path / "fp16").exists()


def test_loader_processes_and_no_moving_average(tree: Path, tmp_path: Path) -> None:
    result = train(tiny(tree, tmp_path / "run", num_workers=1, ema_decay=0.0, clip_grad=0.0, epochs=1))
    state = RunFolder(result.run_folder).read_state()["engine"]
    assert state["ema"] is None
    assert_equal(vmamba.read_weights(result.run_folder / "last.safetensors").state_dict, dict(state["model"]))


def test_evaluation_leaves_no_process_and_no_loader(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tree, num_workers=2, batch_size=2).resolved()
    with accelerator_for(config) as accelerator:
        task, subsets = config.learnt.load(config.data, {})
        trainer = Trainer(config, task, subsets, accelerator)
        loaders = list(accelerator._dataloaders)
        plain = ScoreCounter.update
        running: list[int] = []

        def update(counter: ScoreCounter, seen: Any) -> None:
            running.append(len(multiprocessing.active_children()))
            plain(counter, seen)

        monkeypatch.setattr(ScoreCounter, "update", update)
        assert [trainer.evaluate(subsets.val).count for _ in range(2)] == [9, 9]
        assert max(running) == 2
        assert multiprocessing.active_children() == []
        assert accelerator._dataloaders == loaders

        def fail(counter: ScoreCounter, seen: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(ScoreCounter, "update", fail)
        with pytest.raises(ZeroDivisionError) as caught:
            trainer.evaluate(subsets.val)
        assert caught.tb  # it holds the frames, and with them the loader
        assert multiprocessing.active_children() == []
        assert accelerator._dataloaders == loaders


# --- refused before anything is written


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": -1}, "epochs=-1: want a whole number, 1 or more"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"warmup_epochs": 4}, "warmup_epochs=4 must be fewer than epochs=4"),
        ({"min_lr": 1.0}, "min_lr=1.0 is above lr"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"seed": -1}, "seed=-1"),
        ({"device": "gpu"}, "device='gpu': want auto, cpu"),
        ({"device": "cuda"}, "finds no such device"),
        ({"model": "vmamba_nan"}, "did you mean 'vmamba_nano'"),
        ({"model_options": {"num_classes": 3}}, "num_classes: it comes from the data"),
        ({"model_options": {"dimz": 3}}, "dimz"),
        ({"augmentation": Augmentation(auto_augment="rnd")}, "not a timm policy"),
        ({"selective_scan_backend": "core"}, "core"),
    ],
)
def test_bad_settings_write_nothing(tree: Path, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    if fields.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(vmamba.VMambaError, match=words):
        train(tiny(tree, tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


def test_image_smaller_than_a_patch(tree: Path, tmp_path: Path) -> None:
    config = tiny(tree, tmp_path / "run", data=DataConfig("folder", tree, image_size=3))
    with pytest.raises(ConfigError, match=r"image_size=3 does not suit .*smaller than"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_output_places_that_cannot_be(tree: Path, tmp_path: Path, finished: Any) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="file is a file; give a folder"):
        train(tiny(tree, file))
    with pytest.raises(OutputError, match="file is a file"):
        train(tiny(tree, file / "run"))
    with pytest.raises(OutputError, match=r"is not empty \(a run: to go on with it, resume it\)"):
        train(tiny(tree, finished[1]))
    with pytest.raises(OutputError, match=r"cannot create|cannot write"):
        train(tiny(tree, Path("/proc/run")))


def test_default_folder_takes_the_next_free_name(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(train(tiny(tree, epochs=1)).run_folder) for _ in range(2)]
    assert names == ["runs/vmamba_nano-folder-seed0", "runs/vmamba_nano-folder-seed0-2"]


# --- what is said


def test_one_line_an_epoch_where_there_is_no_terminal(finished: Any, tree: Path) -> None:
    said = finished[3]
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 4
    assert all("loss" in line and "acc" in line and "img/s" in line and "ETA 0:" in line for line in lines)
    assert said.splitlines()[0] == f"train vmamba_nano on folder in {tree}, 4 epochs, output to {finished[1]}"
    assert "27 train, 9 val, 9 test images, 3 classes" in said
    assert "test accuracy" in said


def test_live_progress_on_a_terminal(tree: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    train(tiny(tree, tmp_path / "run", epochs=1), Console(file=said, force_terminal=True, width=120))
    assert "epoch 1/1" in said.getvalue()
    assert "img/s  ETA" in said.getvalue()
