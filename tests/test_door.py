"""`vmamba.train`, `vmamba.evaluate` and `vmamba.predict`: the commands, as functions."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import vmamba
from vmamba.data import Augmentation, DataConfig
from vmamba.errors import ConfigError
from vmamba.given import given_fields
from vmamba.train.door import config_of


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import vmamba", marks=pytest.mark.endless),
        "import vmamba.train",
        pytest.param("import vmamba.train.run, vmamba.evaluate.measure", marks=pytest.mark.endless),
        "from vmamba import *",
    ],
)
def test_they_can_be_called_whatever_was_imported_before(first: str) -> None:
    script = f"""
import sys
{first}
import vmamba
assert set(dir(vmamba)) >= {{"train", "evaluate", "predict"}}
for door in (vmamba.train, vmamba.evaluate, vmamba.predict):
    assert callable(door) and door.__doc__
from vmamba import evaluate, predict, train
import vmamba.train.settings.config
assert vmamba.train is train is sys.modules["vmamba.train"] and vmamba.train.settings.config.TrainConfig
try:
    train(modle="vmamba_nano")
except vmamba.ConfigError as error:
    print(error)
try:
    vmamba.trains
except AttributeError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    said, unknown = out.stdout.splitlines()
    assert said.startswith("vmamba.train has no 'modle'; did you mean 'model'")
    assert unknown == "module 'vmamba' has no attribute 'trains'"
    assert out.stderr == ""


def test_train_evaluate_predict(colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)
    said = io.StringIO()
    result = vmamba.train(  # type: ignore[operator]
        model="vmamba_nano",
        model_options={"dims": [8, 16], "depths": [1, 1]},
        data={"data_dir": str(colour_images), "image_size": 16},
        augmentation={"hflip": 0.0},
        epochs=2,
        lr=1e-2,
        batch_size=9,
        num_workers=0,
        device="cpu",
        output="run",
        console=Console(file=said, width=200),
    )
    assert (result.run_folder, result.epochs) == (Path("run"), 2)
    assert "epoch 2/2" in said.getvalue()
    measured = vmamba.evaluate("run", device="cpu", split="val")  # type: ignore[operator]
    assert measured.scores.figures["accuracy"] == pytest.approx(result.best_val["accuracy"])
    again = vmamba.evaluate(Path("run"), data={"seed": 1}, device="cpu")  # type: ignore[operator]
    assert again.dataset == f"folder {colour_images}"
    assert vmamba.evaluate("run", data=colour_images, device="cpu").scores.count == 9  # type: ignore[operator]
    one, two = sorted(colour_images.rglob("*.png"))[:2]
    answers: list[Any] = vmamba.predict([one, str(two)], "run", topk=2, device="cpu")
    assert [answer.path for answer in answers] == [one, two]
    assert [len(answer.classes) for answer in answers] == [2, 2]
    (alone,) = vmamba.predict(one, "run", topk=2, device="cpu")
    assert alone.path == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]  # nothing else was written
    vmamba.predict(one, "run", device="cpu", output="said", sheet=0)
    assert (tmp_path / "said" / "predictions.json").is_file()
    assert vmamba.train(resume="run", epochs=3).epochs == 3  # type: ignore[operator]


def test_keywords_make_the_commands_configuration(tmp_path: Path) -> None:
    folder = DataConfig("folder", tmp_path)
    assert config_of(str(tmp_path), None, {}).data == config_of(tmp_path, None, {}).data == folder
    assert config_of("digits", None, {}).data == DataConfig("digits")
    assert config_of(folder, None, {}).data is folder
    recipe = config_of({"data_dir": tmp_path}, Augmentation(hflip=0.1), {"recipe": "vmamba_tiny_s1l8", "output": "x"})
    assert (recipe.data, recipe.output, recipe.augmentation.hflip) == (folder, Path("x"), 0.1)
    assert given_fields(recipe) == {"data", "augmentation", "recipe", "output"}
    assert recipe.resolved().cutmix == 1.0
    for data, fields, words in [
        ("digitz", {}, "neither a folder nor a data set; data sets: .*did you mean 'digits'"),
        (3, {}, "data is a int; want a DataConfig"),
        ({"dataste": "digits"}, {}, "vmamba.train's data has no 'dataste'; did you mean 'dataset'"),
        (None, {"epochs": "many"}, "vmamba.train: .*epochs"),
        (None, {"epochs": 0}, "epochs=0: want a whole number"),
    ]:
        with pytest.raises(ConfigError, match=words):
            config_of(data, None, fields)  # type: ignore[arg-type]
