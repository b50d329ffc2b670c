"""Several labels an image: figures against scikit-learn's, thresholds, class weights, and a run from a CSV file."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

import vmamba
from vmamba.data import DataConfig
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.tasks.class_weights import class_weights
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.tasks.multilabel.objective import BinaryCrossEntropy
from vmamba.tasks.multilabel.scores import LabelMeter, best_threshold
from vmamba.tasks.trained import load_trained
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig


def plain(**fields: Any) -> Any:
    return SimpleNamespace(**{"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, **fields})


def test_scores_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (90, 5), generator=generator)
    truth[:, 3], truth[:, 4] = 0, 1  # what cannot be ranked
    logits = torch.randn(90, 5, generator=generator) + truth + 20 * torch.tensor([0, 0, 1, 0, 0])
    logits[:9] = logits[9:18]  # ties
    meter = LabelMeter(list("abcde"), [0.5, 0.4, 0.5, 0.5, 0.5])
    for some, these in zip(logits.chunk(4), truth.chunk(4), strict=True):
        meter.update(meter.observe(some, (some, these.to(torch.int8))))
    unread = torch.full((2, 5), -1)
    meter.update((torch.zeros(2, 5), unread))
    scores = meter.measurement()
    assert scores.images == 90
    for i, row in enumerate(scores.labels[:3]):
        y, p = truth[:, i].numpy(), logits[:, i].numpy()
        assert row.average_precision == pytest.approx(average_precision_score(y, p))
        assert row.auroc == pytest.approx(roc_auc_score(y, p))
        assert row.f1 == pytest.approx(f1_score(y, logits[:, i].sigmoid().numpy() >= row.threshold))
        assert row.images == y.sum()
    assert [row.average_precision for row in scores.labels[3:]] == [None, None]
    assert scores.figures["map"] == pytest.approx(np.mean([row.average_precision for row in scores.labels[:3]]))
    shares = logits.double().sigmoid().numpy()
    losses = [log_loss(truth[:, i].numpy(), shares[:, i], labels=[0, 1]) for i in range(5)]
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-5)
    empty = LabelMeter(list("abcde"), [0.5] * 5)
    empty.update((torch.zeros(2, 5), unread))
    with pytest.raises(DataError, match="none of the images can be read"):
        empty.measurement()


def test_the_best_threshold_is_the_best() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        truth = torch.randint(0, 2, (30,), generator=generator)
        shares = (torch.rand(30, generator=generator) * 10).round() / 10
        found = best_threshold(shares, truth)
        f1 = [f1_score(truth, shares >= t, zero_division=0) for t in [*np.linspace(0, 1.1, 111), found]]
        assert f1[-1] == pytest.approx(max(f1))
    assert best_threshold(torch.tensor([0.1, 0.2]), torch.tensor([0, 0])) == 0.5
    assert best_threshold(torch.tensor([0.1, 0.2, 0.6]), torch.tensor([0, 1, 1])) == pytest.approx(0.15)


def test_class_weights(tmp_path: Path) -> None:
    one, several = np.array([0, 0, 0, 1]), np.array([[1, 1], [1, 0], [1, 0], [0, 0]])
    assert class_weights(None, "ab", one) == class_weights("none", "ab", one) == ()
    weights = class_weights("balanced", "ab", one)
    assert weights == pytest.approx((4 / 6, 2.0))
    assert np.mean(np.array(weights)[one]) == pytest.approx(1.0)
    assert class_weights("balanced", "ab", several) == pytest.approx((1 / 3, 3.0))
    assert class_weights({"b": 2, "a": 1}, "ab", one) == (1.0, 2.0)
    (tmp_path / "w.csv").write_text("class,weight\nb,3\na,0.5\n")
    assert class_weights(str(tmp_path / "w.csv"), "ab", one) == (0.5, 3.0)
    for given, words in (
        ("balance", "neither balanced nor none, nor a CSV file"),
        ({"a": 1}, r"no weight for \['b'\]"),
        ({"a": 1, "b": 1, "aa": 1}, r"no class \['aa'\]; did you mean 'a'"),
        ({"a": -1, "b": 1}, "0 or more"),
        ({"a": "x", "b": 1}, "want a number"),
        (3, "class_weights=3"),
    ):
        with pytest.raises(ConfigError, match=words):
            class_weights(given, "ab", one)
    with pytest.raises(ConfigError, match=r"no training image has \['c'\]"):
        class_weights("balanced", "abc", one)


class Table(torch.nn.Module):
    """The inputs are the logits."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def test_weights_count_in_the_losses() -> None:
    logits, labels = torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([0, 0])
    loss = CrossEntropy(plain(), 2, [0.5, 3.0])
    bare = CrossEntropy(plain(), 2)
    part = loss.loss(Table(), loss.prepare((logits, labels)))
    assert part.loss == pytest.approx(0.5 * bare.loss(Table(), bare.prepare((logits, labels))).loss.item())
    several = torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    binary = BinaryCrossEntropy(plain(), [2.0, 1.0])
    want = (2 * math.log1p(math.exp(-1)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))
            + math.log1p(math.exp(-2))) / 4  # fmt: skip
    assert binary.loss(Table(), binary.prepare((logits, several))).loss.item() == pytest.approx(want)
    smooth = BinaryCrossEntropy(plain(label_smoothing=1 - 1e-9))
    half = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full((2, 2), 0.5))
    assert smooth.loss(Table(), (logits, several)).loss.item() == pytest.approx(half.item())
    with pytest.raises(ConfigError, match=r"mixup=0\.8.*not mixed; give mixup=0"):
        BinaryCrossEntropy(plain(mixup=0.8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained to tell whether an image is red, and whether it is green; it may be both or neither."""
    root = tmp_path_factory.mktemp("labels")
    random = np.random.RandomState(0)
    lines = ["file,red,green"]
    for i in range(60):
        pixels = random.randint(0, 60, (16, 16, 3))
        pixels[..., 0] += 150 * (i % 2)
        pixels[..., 1] += 150 * (i // 2 % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{i // 2 % 2}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    path = root / "run"
    result = train(
        TrainConfig(
            model_options={"dims": [8, 16], "depths": [1, 1]},
            data=DataConfig("folder", root, image_size=16, labels=root / "labels.csv"),
            task="multilabel",
            task_options={"class_weights": "balanced"},
            epochs=6,
            batch_size=6,
            lr=1e-2,
            select_by="f1",
            num_workers=0,
            device="cpu",
            output=path,
        )
    )
    assert result.test is not None
    assert result.test.figures["map"] > 0.9
    assert {p.name for p in path.iterdir()} >= {"average_precision.png", "curves.png"}
    return path


def test_thresholds_come_from_validation_and_travel_with_the_weights(run: Path, tmp_path: Path) -> None:
    trained = load_trained(run)
    assert len(trained.task.thresholds) == 2
    said = io.StringIO()
    result = evaluate(EvaluateConfig(run, split="val", device="cpu", json=tmp_path / "e.json"), Console(file=said))
    assert [row.threshold for row in result.scores.labels] == pytest.approx(trained.task.thresholds)
    assert [row.best_threshold for row in result.scores.labels] == pytest.approx(trained.task.thresholds, abs=1e-4)
    assert "at threshold" in said.getvalue()
    assert "mAP" in said.getvalue()
    assert json.loads((tmp_path / "e.json").read_text())["map"] == result.scores.figures["map"]
    with pytest.raises(ConfigError, match="no such picture"):
        evaluate(EvaluateConfig(run, confusion=tmp_path / "c.png"))


def test_labels_above_the_threshold_are_the_answer(run: Path, tmp_path: Path) -> None:
    images = tuple(run.parent / f"{i}.png" for i in range(4))
    said = io.StringIO()
    config = PredictConfig(images, run, output=tmp_path / "out", device="cpu")
    answers = predict(config, Console(file=said, width=200))
    assert [set(answer.labels) for answer in answers] == [set(), {"red"}, {"green"}, {"red", "green"}]
    assert "4 labels hold for 4 image(s)" in said.getvalue()
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert written[1]["labels"] == ["red"]
    assert {row["class"] for row in written[1]["top"]} == {"red", "green"}
    for threshold, count in ((0.0, 2), (1.0, 0)):
        some = predict(PredictConfig(images, run, output=tmp_path / "t", threshold=threshold, sheet=0, device="cpu"))
        assert {len(answer.labels) for answer in some} == {count}
    with pytest.raises(ConfigError, match=r"threshold=1\.5"):
        PredictConfig(images, run, threshold=1.5)
    with pytest.raises(ConfigError, match="truth=folder"):
        predict(PredictConfig(images, run, truth="folder", output=tmp_path / "t", device="cpu"))


def test_labels_are_matched_by_name(run: Path, tmp_path: Path) -> None:
    text = (run.parent / "labels.csv").read_text().splitlines()
    turned = [",".join([file, b, a]) for file, a, b in (line.split(",") for line in text)]
    (tmp_path / "t.csv").write_text("\n".join(turned))
    data = DataConfig("folder", run.parent, image_size=16, labels=tmp_path / "t.csv")
    one, other = evaluate(EvaluateConfig(run, device="cpu")), evaluate(EvaluateConfig(run, data, device="cpu"))
    assert one.scores == other.scores


def test_one_task_is_not_the_other(run: Path, colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    data = DataConfig("folder", run.parent, image_size=16, labels=run.parent / "labels.csv")
    with pytest.raises(DataError, match=r"several labels; give task=multilabel"):
        train(TrainConfig(data=data, output=tmp_path / "run", device="cpu"))
    picture = (colour_images / "red" / "00.png",)
    with pytest.raises(ConfigError, match="thresholds are for models of task=multilabel"):
        predict(PredictConfig(picture, colour_run, threshold=0.5, output=tmp_path / "out"))
    # Weights written before there was a threshold, or a macro-F1, are as good as ever.
    assert "thresholds" not in vmamba.read_weights(colour_run / "best.safetensors").metadata


def test_any_data_set_may_be_learnt_label_by_label(colour_run: Path, tmp_path: Path) -> None:
    from vmamba.tasks.multilabel.task import MultiLabel

    task, splits = MultiLabel.load(DataConfig("digits"), {})
    assert splits.val.targets.shape == (len(splits.val), 10)
    assert splits.val.targets.sum(1).tolist() == [1] * len(splits.val)
    assert task.dataset(splits.val)[3][1].argmax() == splits.val.targets[3].argmax()
