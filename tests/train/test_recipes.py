"""Recipes: the released models' are upstream's, what is given wins over them, and the rates follow the global batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vmamba.architecture.variants import VARIANTS
from vmamba.cli import main
from vmamba.data import Augmentation, DataConfig
from vmamba.errors import ConfigError, DataError
from vmamba.train.folder.resume import resumed_config
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.loop.optimizer import make_scheduler
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig
from vmamba.train.settings.recipe_files import read_recipe, recipe_names
from vmamba.weights.released import OFFICIAL

#: Segmenters and detectors share a recipe among all backbones.
CLASSIFIERS = [name for name in OFFICIAL if name in VARIANTS]

#: classification/config.py of upstream, whose rates are for 512 images.
UPSTREAM: dict[str, Any] = {
    "epochs": 300,
    "warmup_epochs": 20,
    "weight_decay": 0.05,
    "clip_grad": 5.0,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "ema_decay": 0.9999,  # of its main.py, without a warm-up
    "ema_warmup": False,
    "decay_ssm": True,
    "batch_size": 128,
    "grad_accumulation": 1,
    "layer_decay": 1.0,
    "init": None,
    "model_options": {},
}
PER_512 = {"lr": 5e-4, "min_lr": 5e-6, "warmup_lr": 5e-7}
AUGMENTATION = Augmentation((0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.4, "rand-m9-mstd0.5-inc1", 0.25, 0.0)


def photos(folder: Path) -> DataConfig:
    return DataConfig("folder", folder)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_released_model_is_trained_as_upstream_trained_it(name: str, tmp_path: Path) -> None:
    config = TrainConfig(recipe=name, data=photos(tmp_path)).resolved()
    assert {field: getattr(config, field) for field in UPSTREAM} == UPSTREAM
    assert config.model == name
    assert config.drop_path_rate == VARIANTS[name].options["drop_path_rate"]
    assert config.augmentation == AUGMENTATION
    assert (config.data.image_size, config.data.defaults.interpolation, config.data.defaults.crop_pct) == (
        224, "bicubic", 224 / 256,
    )  # fmt: skip
    for processes in (1, 4, 8):
        now = config.for_processes(processes)
        for rate, each in PER_512.items():
            assert getattr(now, rate) == pytest.approx(each * 128 * processes / 512, rel=1e-12)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes"), [(128, 1, 8), (64, 16, 1), (256, 2, 2), (1024, 1, 1)]
)
def test_the_rates_of_1024_images_are_the_papers_however_they_are_divided(
    tmp_path: Path, batch_size: int, accumulation: int, processes: int
) -> None:
    config = TrainConfig(
        recipe="vmamba_tiny_s1l8", batch_size=batch_size, grad_accumulation=accumulation, data=photos(tmp_path)
    )
    config = config.resolved().for_processes(processes)
    rates = (config.lr, config.min_lr, config.warmup_lr)
    assert rates == (1e-3, 1e-5, 1e-6)
    updates = 5  # an epoch
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rates[0])
    scheduler = make_scheduler(optimizer, config, updates)
    seen = []
    for update in range(0, 300 * updates + 1, 25):
        scheduler.step_update(update)
        seen.append(optimizer.param_groups[0]["lr"])
    # What upstream's build_scheduler makes of 5e-4, 5e-6 and 5e-7 for 512 images, by hand.
    lr, low, first = (each * 1024 / 512 for each in PER_512.values())
    warm, whole = 20 * updates, 300 * updates
    want = [
        first + (lr - first) * t / warm
        if t < warm
        else low + (lr - low) * (1 + math.cos(math.pi * (t - warm) / (whole - warm))) / 2
        for t in range(0, whole + 1, 25)
    ]
    np.testing.assert_allclose(seen, want, rtol=1e-9)
    assert seen[0] == pytest.approx(1e-6)
    assert seen[4] == pytest.approx(1e-3)
    assert seen[-1] == pytest.approx(1e-5)


def test_every_released_model_has_a_recipe_and_every_recipe_can_be_used(tmp_path: Path) -> None:
    assert set(CLASSIFIERS) <= set(recipe_names())
    for name in recipe_names():
        config = TrainConfig(recipe=name, data=photos(tmp_path)).resolved().for_processes(1)
        assert config.lr is not None
        assert config.lr > (config.min_lr or 0.0) >= 0
        assert config.resolved() == config
    one = TrainConfig(recipe="one_gpu", data=photos(tmp_path)).resolved().for_processes(1)
    assert (one.lr, one.checkpointing, one.mixed_precision) == (1e-3, True, "bf16")


def test_given_wins_over_the_recipe_and_that_over_the_data_set(tmp_path: Path) -> None:
    data = DataConfig("folder", tmp_path, image_size=192)
    plain = TrainConfig(data=data).resolved()
    assert (plain.epochs, plain.mixup, plain.augmentation.crop_scale) == (100, 0.0, (0.35, 1.0))
    config = TrainConfig(
        recipe="vmamba_tiny_s1l8", mixup=0.0, epochs=10, augmentation=Augmentation(hflip=0.0), data=data
    )
    now = config.resolved()
    assert (now.mixup, now.epochs, now.augmentation.hflip, now.data.image_size) == (0.0, 10, 0.0, 192)
    assert (now.cutmix, now.augmentation.random_erasing, now.model) == (1.0, 0.25, "vmamba_tiny_s1l8")
    assert now.warmup_epochs == 2  # a quarter of ten
    assert TrainConfig("vmamba_nano", recipe="vmamba_tiny_s1l8", data=data).resolved().model == "vmamba_nano"
    # Given as None is left out.
    assert TrainConfig(recipe="vmamba_tiny_s1l8", cutmix=None, data=data).resolved().cutmix == 1.0


def test_a_data_sets_recipe_may_want_more_than_rates() -> None:
    def of(**fields: Any) -> TrainConfig:
        return TrainConfig(task="segmentation", **fields).resolved()

    shapes = of()
    assert (shapes.data.dataset, shapes.data.image_size) == ("shapes", 64)
    assert (shapes.epoch_updates, shapes.warmup_updates) == (330, 30)
    assert (shapes.task_options["loss"], shapes.task_options["class_weights"]["background"]) == ("dice", 0.1)
    own = of(data=DataConfig("shapes", image_size=96), epoch_updates=3, warmup_epochs=1, task_options={"scale": [1, 1]})
    assert (own.data.image_size, own.epoch_updates, own.warmup_epochs, own.warmup_updates) == (96, 3, 1, None)
    assert own.task_options == {**shapes.task_options, "scale": [1, 1]}
    assert of(schedule="cosine").warmup_updates is None
    # A recipe that is named stands for itself.
    named = of(recipe="segmentation_small", data=DataConfig("shapes"))
    assert (named.data.image_size, named.epoch_updates) == (256, None)
    assert "resize" not in named.task_options


def test_the_optimizer_is_the_data_sets_unless_something_else_says_or_a_run_goes_on(tmp_path: Path) -> None:
    fashion, digits = DataConfig("fashion-mnist"), DataConfig("digits")
    assert TrainConfig(data=fashion).resolved().optimizer == "muon"
    assert TrainConfig(data=digits).resolved().optimizer == "adamw"
    assert TrainConfig(data=digits, optimizer="muon").resolved().optimizer == "muon"
    # Its learning rate is AdamW's.
    assert TrainConfig(recipe="laptop", data=photos(tmp_path)).resolved().optimizer == "adamw"
    assert TrainConfig(recipe="laptop", data=fashion).resolved().optimizer == "adamw"
    # A run of a version that had no choice has AdamW's moments.
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).write_config(TrainConfig(data=fashion, output=run).resolved())
    path = RunFolder(run).config
    stored = path.read_text().splitlines()
    path.write_text("\n".join(line for line in stored if not line.startswith("optimizer:")))
    assert "optimizer: muon" in stored
    assert resumed_config(TrainConfig(resume=run)).resolved().optimizer == "adamw"


def test_a_rate_as_it_is_wins_over_one_that_follows_the_batch(tmp_path: Path) -> None:
    data = photos(tmp_path)
    config = TrainConfig(recipe="vmamba_tiny_s1l8", lr=3e-4, data=data).resolved()
    assert [config.for_processes(count).lr for count in (1, 8)] == [3e-4, 3e-4]
    assert config.for_processes(8).min_lr == 1e-5
    # And the other way round, over a recipe and over the data set.
    for recipe in ("laptop", None):
        config = TrainConfig(recipe=recipe, lr_per_1024=1e-3, data=data).resolved()
        assert config.lr is None
        assert config.for_processes(2).lr == 1e-3 * 64 * 2 / 1024
    with pytest.raises(ConfigError, match=r"min_lr_per_1024=0\.1 is above lr_per_1024=0\.01"):
        TrainConfig(lr_per_1024=0.01, min_lr_per_1024=0.1)
    with pytest.raises(ConfigError, match=r"min_lr=1e-05 is above lr=1e-06"):
        TrainConfig(recipe="vmamba_tiny_s1l8", lr=1e-6, data=data).resolved().for_processes(8)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    other.write_text("base: mine.yaml\nepochs: 7\nwarmup_epochs: 1\naugmentation: {hflip: 0.25}\n")
    mine.write_text("base: vmamba_tiny_s2l5\nepochs: 5\nmixed_precision: bf16\naugmentation: {color_jitter: 0.1}\n")
    config = TrainConfig(recipe=str(other), data=photos(tmp_path)).resolved()
    assert (config.model, config.epochs, config.mixed_precision) == ("vmamba_tiny_s2l5", 7, "bf16")
    a = config.augmentation
    assert (a.hflip, a.color_jitter, a.random_erasing) == (0.25, 0.1, 0.25)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"neither a recipe nor a YAML file; recipes: .*vmamba_tiny_s1l8"),
        ("base: mine.yaml", r"its bases run in a circle, .*mine\.yaml → .*mine\.yaml"),
        ("base: [laptop]", r"base=\['laptop'\]: want one"),
        ("output: here", "sets output, which a recipe may not"),
        ("epoch: 3", r"recipe .*mine\.yaml.*epoch"),
        ("epochs: many", r"recipe .*mine\.yaml.*epochs"),
        ("augmentation: 3", r"recipe .*mine\.yaml.*augmentation"),
        ("epochs: -1", "epochs=-1: want a whole number"),
        ("- 3", "holds a list, want a mapping"),
        ("{", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        TrainConfig(recipe=str(path), data=photos(tmp_path)).resolved()


def test_the_command_line_takes_the_recipes_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--recipe", "vmamba_tiny_s1l8", "--data.data_dir", str(tmp_path), "--mixup", "0.5"]
    assert main([*words, "--print_config"]) == 0
    out = capsys.readouterr().out
    lines = {line.split(":")[0].strip(): line.partition("#")[2].strip() for line in out.splitlines()}
    for name in ("model", "dataset", "epochs", "crop_scale", "drop_path_rate", "lr_per_1024"):
        assert lines[name] == "recipe vmamba_tiny_s1l8", name
    assert [lines[name] for name in ("data_dir", "mixup", "recipe")] == ["given"] * 3
    assert lines["in_chans"] == "data set folder"
    assert lines["lr"] == "by lr_per_1024; in one process lr 0.000125, min_lr 1.25e-06, warmup_lr 1.25e-07"
    # What was printed is a configuration file, and a recipe.
    values = yaml.safe_load(out)
    (tmp_path / "printed.yaml").write_text(out)
    assert main(["train", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == values
    assert main(["train", "--recipe", "vmamba_tinny", "--print_config"]) == 2
    assert "did you mean 'vmamba_tiny_s1l8'" in capsys.readouterr().err.replace("'vmamba_tiny_s2l5', ", "")
    # A tree without pictures gets as far as the data: the command works as it is printed in the docs.
    with pytest.raises(DataError, match="no class folders"):
        train(TrainConfig(recipe="vmamba_tiny_s1l8", data=photos(tmp_path), output=tmp_path / "run", device="cpu"))


def test_a_run_goes_on_without_its_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: laptop\nwarmup_epochs: 1\nlr_per_1024: 0.01\nlr: null\nmin_lr: 0.0\nepochs: 9\n")
    run = tmp_path / "run"
    start = TrainConfig(recipe=str(recipe), output=run, data=photos(tmp_path)).resolved().for_processes(2)
    run.mkdir()
    RunFolder(run).write_config(start)
    recipe.unlink()
    again = resumed_config(TrainConfig(resume=run)).resolved().for_processes(7)
    assert (again.epochs, again.lr, again.recipe) == (9, 0.01 * 64 * 2 / 1024, str(recipe))
    assert again.augmentation == start.augmentation


def test_bases_are_read_first() -> None:
    assert read_recipe("vmamba_tiny_s1l8")["augmentation"]["random_erasing"] == 0.25
    assert "base" not in read_recipe("one_gpu")
