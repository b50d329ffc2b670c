"""Nothing in training and evaluation is classification: a regression task goes the whole way by the same code."""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import vmamba
from vmamba.errors import CheckpointError, ConfigError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.tasks.registry import TASKS
from vmamba.tasks.trained import load_trained
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

HERE = Path(__file__).parent


def disc_module() -> Any:
    spec = importlib.util.spec_from_file_location("discs", HERE / "discs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["discs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def discs() -> Iterator[Any]:
    """The task, in the table while these tests run."""
    module = disc_module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    TASKS["discs"] = module.DiscTask
    yield module
    del TASKS["discs"], sys.modules["discs"]
    torch.set_num_threads(threads)


def config(output: Path, **fields: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "task": "discs",
        "task_options": {"unit": "sides"},
        "model_options": {"dims": [8, 16], "depths": [1, 1]},
        "epochs": 8,  # with fewer, where a disc lies is hardly learnt
        "batch_size": 8,
        "lr": 1e-2,
        "ema_decay": 0.0,
        "device": "cpu",
        "output": output,
    }
    return TrainConfig(**{**values, **fields})


@pytest.fixture(scope="module")
def run(discs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    path = tmp_path_factory.mktemp("discs") / "run"
    said = io.StringIO()
    result = train(config(path), Console(file=said, width=200))
    return path, result, said.getvalue()


def metrics(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_learnt_and_ranked_by_its_own_figure(run: tuple[Path, Any, str]) -> None:
    path, result, said = run
    rows = metrics(path)
    assert list(rows[0]) == [
        "epoch", "train_mae", "train_far", "val_distance", "lr", "seconds", "images_per_second",
        "grad_norm", "memory_mib", "data_wait",
    ]  # fmt: skip
    best = min(rows, key=lambda row: float(row["val_distance"]))
    assert result.best_epoch == int(best["epoch"])
    assert result.best_val == {"distance": float(best["val_distance"])}
    assert float(rows[-1]["train_mae"]) < 0.7 * float(rows[0]["train_mae"])
    assert result.test.figures["distance"] < 0.25  # guessing the middle is off by 0.23 on average, chance by far more
    names = {"config.yaml", "metrics.csv", "curves.png", "distances.png", "best.safetensors", "last.safetensors"}
    assert {p.name for p in path.iterdir()} - {"best.1.safetensors"} == {*names, "state.pt", "state.1.pt"}
    assert (
        f"best epoch {result.best_epoch}: validation distance {result.best_val['distance']:.3f}, test distance" in said
    )
    assert "96 train, 16 val, 16 test images, 2 coordinates, 16×16" in said
    assert "  train mae 0." in said
    assert " val dist 0." in said


def test_it_comes_back_is_measured_and_predicts(run: tuple[Path, Any, str], discs: Any, tmp_path: Path) -> None:
    path, result, _ = run
    trained = load_trained(path)
    assert trained.task == discs.DiscTask("sides")
    said = io.StringIO()
    places = {"json": tmp_path / "e.json", "pictures": tmp_path / "pictures"}
    measured = evaluate(EvaluateConfig(path, **places), Console(file=said, width=300))
    assert measured.scores.figures == pytest.approx(result.test.figures, rel=1e-5)
    assert "the farthest disc of test" in said.getvalue()
    assert f"distance {result.test.figures['distance']:.3f}   16 images" in said.getvalue()
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["samples"] == 16
    assert written["distance"] == measured.scores.figures["distance"]
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["distances.png"]
    with pytest.raises(ConfigError, match="the task discs has no such picture"):
        evaluate(EvaluateConfig(path, confusion=tmp_path / "c.png"))

    for name, x in (("left", 0.25), ("right", 0.75)):
        discs.disc(x, 0.5).save(tmp_path / f"{name}.png")
    said = io.StringIO()
    images = (tmp_path / "left.png", tmp_path / "right.png")
    left, right = predict(PredictConfig(images, path, output=tmp_path / "out"), Console(file=said, width=300))
    assert left.place[0] < right.place[0]
    assert "left.png at 0." in said.getvalue()
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert answers == [left.to_dict(), right.to_dict()]


def test_interrupted_and_resumed_it_is_bitwise_the_same(
    run: tuple[Path, Any, str], discs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, result, _ = run
    left = iter(range(2 * (96 + 16) + 20, 0, -1))
    plain = discs.DiscPixels.__getitem__

    def read(pixels: Any, index: int) -> Any:
        if next(left) == 1:
            raise KeyboardInterrupt
        return plain(pixels, index)

    with monkeypatch.context() as patch:
        patch.setattr(discs.DiscPixels, "__getitem__", read)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path / "run"))
    assert len(metrics(tmp_path / "run")) == 2
    resumed = train(TrainConfig(resume=tmp_path / "run", task="discs", task_options={"unit": "sides"}))
    assert (resumed.best_epoch, resumed.best_val) == (result.best_epoch, result.best_val)
    for name in ("best", "last"):
        one, other = (vmamba.read_weights(path / f"{name}.safetensors") for path in (whole, tmp_path / "run"))
        assert one.metadata == other.metadata
        assert one.state_dict.keys() == other.state_dict.keys()
        assert all(torch.equal(value, other.state_dict[key]) for key, value in one.state_dict.items())
    with pytest.raises(ConfigError, match=r"task_options is \{'unit': 'sides'\} there"):
        train(TrainConfig(resume=tmp_path / "run", task="discs", task_options={"unit": "px"}))
    assert train(TrainConfig(resume=tmp_path / "run")).epochs == 8  # the stored run's task


def test_what_a_task_does_not_know_is_refused(run: tuple[Path, Any, str], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"task='disks' is unknown; legal: classification, multilabel, segmentation, detection, discs; did",
    ):
        TrainConfig(task="disks")
    with pytest.raises(ConfigError, match="select_by='accuracy': want distance"):
        config(tmp_path, select_by="accuracy")
    with pytest.raises(ConfigError, match="classification has class_weights alone"):
        train(TrainConfig(task_options={"unit": "px"}, output=tmp_path / "run"))
    file = vmamba.read_weights(run[0] / "best.safetensors")
    other = tmp_path / "other.safetensors"
    vmamba.save_weights(other, file.state_dict, {**file.metadata, "task": "depth"})
    with pytest.raises(
        CheckpointError,
        match=r"trained for the task 'depth', which .* it knows classification, .*, detection, discs",
    ):
        load_trained(other)


def test_weights_of_another_run_are_a_start(run: tuple[Path, Any, str], tmp_path: Path) -> None:
    tuned = config(tmp_path / "run", init=str(run[0]), reset_stages=1, freeze_stages=1, head_only_epochs=1, epochs=1)
    train(replace(tuned, warmup_epochs=0))
    start, end = (vmamba.read_weights(path / "best.safetensors").state_dict for path in (run[0], tmp_path / "run"))
    same = {name for name, value in start.items() if torch.equal(value, end[name])}
    assert {"patch_embed.0.weight", "layers.0.blocks.0.op.in_proj.weight"} <= same
    assert not {name for name in same if name.startswith("layers.1.blocks.0.op.in_proj")}


@pytest.mark.parametrize("folder", ["train", "evaluate"])
def test_no_module_of_training_and_evaluation_imports_a_task(folder: str) -> None:
    root = Path(str(vmamba.__file__)).parent / folder
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            wrong = [name for name in names if name.startswith("vmamba.tasks.classification")]
            assert not wrong, f"{path} (line {node.lineno}) imports {wrong[0]}"
