"""A run's folder that vmamba 0.1.0 wrote before weight files and configurations named their task.

``old_run/`` is what ``vmamba train --epochs 2 --model_options '{dims: [4,8], depths: [1,1], patch_size: 8}'
--data.dataset digits --data.train_images 60 --batch_size 20 --num_workers 0 --device cpu --mixup 0.2 --cutmix 0.5``
left there, without its pictures.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba.data import DataConfig, load_splits
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.export.exporter import ExportConfig, export
from vmamba.tasks.run_files import trained_on
from vmamba.tasks.trained import load_trained
from vmamba.train.folder.run_folder import RunFolder, config_from_dict
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig
from vmamba.train.settings.recipe import recipe_for

OLD = Path(__file__).parent / "old_run"
HEADER = "epoch,train_loss,train_accuracy,val_loss,val_accuracy,val_macro_f1,lr,seconds,images_per_second"
#: ``val_loss`` and ``val_accuracy`` of epochs 3 and 4 as this version goes on with it. The old one, whose random crops
#: depended on what had been loaded before, reached 2.2905 and 2.2884.
WENT_ON = [(2.2907658576965333, 0.15), (2.28908781475491, 0.15)]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_is_gone_on_with(old: Path) -> None:
    assert "task" not in vmamba.read_weights(old / "best.safetensors").metadata
    result = train(TrainConfig(resume=old, epochs=4))
    assert (result.epochs, result.best_epoch) == (4, 4)
    text = (old / "metrics.csv").read_text()
    assert text.startswith(HEADER + ",grad_norm,memory_mib,data_wait\n")
    rows = list(csv.DictReader(text.splitlines()))
    with (OLD / "metrics.csv").open(newline="") as file:
        before = list(csv.DictReader(file))
    # What the old version did not note is not known.
    unknown = {"val_macro_f1": "nan", "grad_norm": "", "memory_mib": "", "data_wait": ""}
    assert rows[:2] == [{**row, **unknown} for row in before]
    assert float(rows[2]["grad_norm"]) > 0
    for row, (loss, accuracy) in zip(rows[2:], WENT_ON, strict=True):
        assert float(row["val_loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(row["val_accuracy"]) == pytest.approx(accuracy, abs=0.01)  # another machine may round otherwise
    assert vmamba.read_weights(old / "last.safetensors").metadata["task"] == "classification"


def test_what_came_since_is_off_where_a_data_set_has_it_on() -> None:
    values = RunFolder(OLD).read_settings()
    assert "shift" not in values["augmentation"]
    fashion = {**values, "data": {**values["data"], "dataset": "fashion-mnist"}, "resume": "runs/fashion"}
    config = config_from_dict(fashion).resolved()
    assert (config.augmentation.shift, config.augmentation.hflip, config.optimizer) == (0.0, 0.0, "adamw")


def test_it_is_measured_predicts_and_is_exported(old: Path, tmp_path: Path) -> None:
    measured = evaluate(EvaluateConfig(old, device="cpu", json=tmp_path / "e.json"))
    assert measured.scores.figures["accuracy"] == pytest.approx(0.1198, abs=0.01)
    assert list(json.loads((tmp_path / "e.json").read_text())) == [
        "weights", "model", "dataset", "split", "device", "images_per_second",
        "images", "top1", "top5", "loss", "classes", "confusion", "macro_f1",
    ]  # fmt: skip
    digits = load_splits(DataConfig()).val
    digits[0][0].save(tmp_path / "digit.png")
    (answer,) = predict(PredictConfig((tmp_path / "digit.png",), old, output=tmp_path / "out", sheet=0))
    assert set(answer.classes) <= set("0123456789")
    exported = export(ExportConfig(str(old), "torch-export", tmp_path / "m.pt2"))
    assert exported.error <= 1e-4


def test_a_run_without_a_task_learnt_classification(old: Path) -> None:
    trained = load_trained(old)
    assert trained.task.name == "classification"
    assert trained.task.classes == tuple("0123456789")
    assert trained_on(old) == DataConfig(image_size=32, in_chans=1, train_images=60, verify="all")
    with torch.inference_mode():
        assert trained.model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_every_data_set_has_its_recipe() -> None:
    from vmamba.data import DATASETS

    for name in DATASETS:
        assert recipe_for(name).epochs >= 1
    assert (recipe_for("digits").select_by, recipe_for("folder").lr) == ("loss", 5e-4)
