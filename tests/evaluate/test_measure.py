"""Evaluation: its numbers against scikit-learn's, a run's own images, labels matched by name, the files it writes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from vmamba.data import DataConfig
from vmamba.data.datasets import folder
from vmamba.errors import ConfigError, DataError, OutputError
from vmamba.evaluate.measure import EvaluateConfig, Evaluation, evaluate, show
from vmamba.output import write_json
from vmamba.tasks.classification.labels import distinct_names
from vmamba.tasks.classification.report import MAX_ROWS
from vmamba.tasks.classification.scores import ScoreCounter, Scores
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.trained import load_trained, save_trained, weight_metadata


def counted(logits: torch.Tensor, labels: torch.Tensor, names: list[str], parts: int = 3) -> Scores:
    counter = ScoreCounter(names)
    for some, these in zip(logits.chunk(parts), labels.chunk(parts), strict=True):
        counter.update(counter.observe(some, (some, these)))
    return counter.measurement()


def test_scores_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (200,), generator=generator)
    logits = torch.randn(200, 8, generator=generator, dtype=torch.float64).float()
    logits[torch.arange(200), labels] += 1.0
    logits[:, 6] -= 20  # a class that is never predicted; and class 7 never occurs
    names = list("abcdefgh")
    scores = counted(logits, labels, names)

    y, guesses, every = labels.numpy(), logits.argmax(1).numpy(), np.arange(8)
    assert scores.images == 200
    assert scores.top1 == pytest.approx((y == guesses).mean())
    assert scores.top5 == pytest.approx(top_k_accuracy_score(y, logits.numpy(), k=5, labels=every))
    assert scores.loss == pytest.approx(log_loss(y, logits.double().softmax(1).numpy(), labels=every), rel=1e-5)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(y, guesses, labels=every))
    want = precision_recall_fscore_support(y, guesses, labels=every, zero_division=0.0)
    for column, name in zip(want, ("precision", "recall", "f1", "images"), strict=True):
        np.testing.assert_allclose([getattr(row, name) for row in scores.classes], column, err_msg=name)
    assert [row.name for row in scores.classes] == names
    assert scores.macro_f1 == pytest.approx(f1_score(y, guesses, average="macro"))  # of the classes that occur


def test_scores_do_not_depend_on_the_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(60, 10, generator=generator), torch.randint(0, 10, (60,), generator=generator)
    one, many = counted(logits, labels, list("0123456789"), 1), counted(logits, labels, list("0123456789"), 20)
    assert one.loss == pytest.approx(many.loss)
    assert replace(one, loss=0.0) == replace(many, loss=0.0)


def test_up_to_five_classes_are_always_among_the_top_five() -> None:
    assert counted(torch.randn(9, 3), torch.zeros(9, dtype=torch.long), list("abc")).top5 == 1.0


def test_a_run_is_measured_on_its_own_images(colour_run: Path) -> None:
    result = evaluate(EvaluateConfig(colour_run, device="cpu"))
    assert result.split == "test"
    assert result.model == "vmamba_nano"
    assert result.scores.images == 9
    assert [row.images for row in result.scores.classes] == [3, 3, 3]
    assert result.scores.top1 == 1.0
    assert result.images_per_second > 0
    assert evaluate(EvaluateConfig(colour_run / "last.safetensors", split="train")).scores.images == 27


def test_labels_are_matched_by_class_name(colour_run: Path, tmp_path: Path) -> None:
    trained = load_trained(colour_run)
    assert trained.task.classes == ("blue", "green", "red")
    order = [2, 0, 1]  # the same weights, classes in another order
    state = {
        name: value[order] if name.startswith("classifier.head.") else value
        for name, value in trained.model.state_dict().items()
    }
    task = Classification(tuple(trained.task.classes[i] for i in order), trained.preprocessing)
    meta = weight_metadata("permuted", trained.model, task)
    save_trained(tmp_path / "permuted.safetensors", state, meta)
    own = DataConfig("folder", Path(read_yaml(colour_run)["data"]["data_dir"]), image_size=16)

    result = evaluate(EvaluateConfig(tmp_path / "permuted.safetensors", data=own))
    assert [row.name for row in result.scores.classes] == ["red", "blue", "green"]
    assert result.scores.top1 == 1.0


def renamed(weights: Path, classes: tuple[str, ...], path: Path) -> Path:
    """The same weights, classes called otherwise."""
    trained = load_trained(weights)
    meta = weight_metadata("renamed", trained.model, Classification(classes, trained.preprocessing))
    save_trained(path, trained.model.state_dict(), meta)
    return path


def test_two_classes_of_one_name_are_never_merged(
    colour_run: Path, colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = renamed(colour_run, ("crane", "crane", "red"), tmp_path / "cranes.safetensors")
    plain = folder.load

    def load(names: tuple[str, ...]) -> Any:
        return lambda config: replace(plain(config), classes=names)

    data = DataConfig("folder", colour_images, image_size=16)
    monkeypatch.setattr(folder, "load", load(("crane", "crane", "red")))  # in the same order, there is no doubt
    scores = evaluate(EvaluateConfig(weights, data=data)).scores
    assert [(row.name, row.images) for row in scores.classes] == [("crane (0)", 3), ("crane (1)", 3), ("red", 3)]
    assert scores.top1 == 1.0
    monkeypatch.setattr(folder, "load", load(("red", "crane", "crane")))
    with pytest.raises(DataError, match=r"several classes called 'crane', .*in another order.*names of their own"):
        evaluate(EvaluateConfig(weights, data=data))
    monkeypatch.setattr(folder, "load", load(("crane", "red", "red")))
    with pytest.raises(DataError, match="was trained on 3 classes"):
        evaluate(EvaluateConfig(weights, data=data))


def test_the_report_tells_classes_of_one_name_apart(colour_run: Path, tmp_path: Path) -> None:
    names = distinct_names(("crane", "crane", "red"))
    text = shown(counted(torch.eye(3)[[1, 1, 2]] * 9, torch.tensor([0, 1, 2]), list(names), 1))
    assert "crane (0) taken for crane (1) (1)" in text
    assert distinct_names(("a", "a", "b"), ("n1", "n2", "n3")) == ("a (n1)", "a (n2)", "b")


def read_yaml(run: Path) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return values


def test_other_classes_are_refused(colour_run: Path) -> None:
    with pytest.raises(DataError, match=r"10 classes \(0, 1, 2.*was trained on 3 classes \(blue, green, red\)"):
        evaluate(EvaluateConfig(colour_run, data=DataConfig("digits")))


def test_weights_outside_of_a_run_need_images(colour_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((colour_run / "best.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"copy\.safetensors does not lie in a run's folder.*data\.dataset"):
        evaluate(EvaluateConfig(copy))


def test_a_missing_split_is_named(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for place in colour_images.iterdir():
            (tmp_path / part / place.name).symlink_to(place)
    with pytest.raises(DataError, match=r"no test split.*split=val"):
        evaluate(EvaluateConfig(colour_run, data=DataConfig("folder", tmp_path, image_size=16)))


def test_the_files(colour_run: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(colour_run, json=tmp_path / "new" / "eval.json", confusion=tmp_path / "confusion.png")
    result = evaluate(config)
    assert config.json is not None
    written = json.loads(config.json.read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["top1"] == result.scores.top1
    assert {row["name"]: row["images"] for row in written["classes"]} == {"blue": 3, "green": 3, "red": 3}
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["confusion.png", "eval.json", "new"]


def test_an_unwritable_file_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        evaluate(EvaluateConfig(tmp_path / "no-such-run", json=tmp_path / "file" / "eval.json"))
    with pytest.raises(OutputError, match="is a folder"):
        evaluate(EvaluateConfig(tmp_path / "no-such-run", json=tmp_path))


def test_json_has_no_numbers_that_are_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": math.nan, "list": [1.5, math.inf, (2, "näme \udcff")]})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {
        "loss": None,
        "list": [1.5, None, [2, "näme \udcff"]],
    }


def shown(scores: Scores) -> str:
    text = io.StringIO()
    show(Evaluation("w", "m", "d", "test", "cpu", 10.0, scores), Console(file=text, width=100))
    return text.getvalue()


def test_the_summary_shows_every_class_or_the_worst(colour_run: Path) -> None:
    logits, labels = torch.eye(3)[[0, 1, 1, 2]] * 9, torch.tensor([0, 0, 1, 2])
    text = shown(counted(logits, labels, ["[red]", "green", "blue"]))
    assert "[red]" in text  # not markup
    assert "[red] taken for green (1)" in text
    assert "top-1 75.00%" in text

    many = [f"class{i:03d}" for i in range(MAX_ROWS + 10)]
    logits = torch.eye(len(many))
    logits[7] = logits[8]
    text = shown(counted(logits, torch.arange(len(many)), many, 1))
    assert f"The {MAX_ROWS} worst of {len(many)} classes" in text
    assert "class007" in text
    assert "class049" not in text
