"""Segmentation the whole way: learnt, resumed, measured, asked, exported, and demonstrated."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_files import TINY, config, red_images
from PIL import Image
from rich.console import Console

import vmamba
from vmamba.cli.main import main
from vmamba.data import DataConfig
from vmamba.data.segmentation.sets import PairImages
from vmamba.errors import ConfigError, DataError, OutputError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.segment import SegmentConfig, segment_files
from vmamba.tasks.trained import load_trained
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return red_images(tmp_path_factory.mktemp("red"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    path, said = tmp_path_factory.mktemp("red_run") / "run", io.StringIO()
    result = train(config(images, path), Console(file=said, width=200))
    return path, result, said.getvalue()


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_loss_falls_and_the_run_says_so(run: tuple[Path, Any, str]) -> None:
    path, result, said = run
    table = rows(path)
    assert float(table[-1]["train_loss"]) < 0.9 * float(table[0]["train_loss"])
    assert float(table[-1]["train_aacc"]) > float(table[0]["train_aacc"])
    assert result.test.count == 2
    assert "7 train, 3 val, 2 test images, 2 classes of pixels, 32×32" in said
    assert {"confusion.png", "curves.png", "best.safetensors"} <= {p.name for p in path.iterdir()}
    assert "best epoch" in said


def test_interrupted_and_resumed_it_is_bitwise_the_same(
    run: tuple[Path, Any, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, result, _ = run
    left = iter(range(24 + 3 + 14, 0, -1))
    plain = PairImages.__getitem__

    def read(self: PairImages, index: int) -> Any:
        if next(left) == 1:
            raise KeyboardInterrupt
        return plain(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(PairImages, "__getitem__", read)
        patch.setattr(PairImages, "faults", lambda *_: {})
        with pytest.raises(KeyboardInterrupt):
            train(config(images, tmp_path / "run"))
    assert len(rows(tmp_path / "run")) == 1
    resumed = train(TrainConfig(resume=tmp_path / "run", task="segmentation"))
    assert resumed.best_val == result.best_val
    for name in ("best", "last"):
        one, other = (vmamba.read_weights(path / f"{name}.safetensors") for path in (whole, tmp_path / "run"))
        assert one.metadata == other.metadata
        assert all(torch.equal(value, other.state_dict[key]) for key, value in one.state_dict.items())


def test_it_comes_back_and_measures_the_same(run: tuple[Path, Any, str], images: Path, tmp_path: Path) -> None:
    path, result, _ = run
    task = load_trained(path).task
    assert task.classes.names == ("class 0", "class 1")  # type: ignore[attr-defined]
    places = {"json": tmp_path / "e.json", "confusion": tmp_path / "c.png"}
    measured = evaluate(EvaluateConfig(path, options={"distances": True}, **places))  # type: ignore[arg-type]
    assert measured.scores.figures == pytest.approx(result.test.figures, rel=1e-5)
    written = json.loads(places["json"].read_text())
    assert len(written["images"]) == 2
    assert written["classes"][1]["hd95"] is not None
    assert written["confusion"] == [list(row) for row in result.test.confusion]
    several = evaluate(EvaluateConfig(path, options={"scales": [0.75, 1.0], "flip": True}))
    assert several.scores.count == 2
    slid = evaluate(EvaluateConfig(path, options={"mode": "slide", "window": 32, "stride": 20, "blend": "gaussian"}))
    assert slid.scores.figures["aacc"] > 0.5
    for options, said in (({"mod": "slide"}, "did you mean 'mode'"), ({"stride": 99}, "no more than window")):
        with pytest.raises(ConfigError, match=said):
            evaluate(EvaluateConfig(path, options=options))
    with pytest.raises(DataError, match="the data has the classes background, square"):
        evaluate(EvaluateConfig(path, DataConfig("shapes")))


def test_a_folder_without_training_images_is_measured(run: tuple[Path, Any, str], tmp_path: Path) -> None:
    red_images(tmp_path, 3)
    for place in ("images", "masks"):
        (tmp_path / place).rename(tmp_path / "old")
        (tmp_path / place).mkdir()
        (tmp_path / "old").rename(tmp_path / place / "val")
    assert evaluate(EvaluateConfig(run[0], DataConfig("masks", tmp_path), split="val")).scores.count == 3


def test_image_files_are_segmented(run: tuple[Path, Any, str], images: Path, tmp_path: Path) -> None:
    path, _result, _ = run
    out = tmp_path / "out"
    words = ["segment", str(images / "images"), "--weights", str(path), "--output", str(out), "--device", "cpu"]
    assert main(words) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted(
        ["areas.json", "legend.png", *(f"{i:02d}_{kind}.png" for i in range(12) for kind in ("mask", "overlay"))]
    )
    said = json.loads((out / "areas.json").read_text())
    assert [row["class"] for row in said["classes"]] == ["class 0", "class 1"]
    for row in said["images"]:
        stem = Path(row["path"]).stem
        with Image.open(out / f"{stem}_mask.png") as mask, Image.open(out / f"{stem}_overlay.png") as picture:
            assert mask.mode == "P"
            counts = np.bincount(np.asarray(mask).ravel(), minlength=2)
            assert mask.size == picture.size == (row["width"], row["height"])
        assert {each["class"]: each["pixels"] for each in row["areas"]} == {
            f"class {i}": int(count) for i, count in enumerate(counts) if count
        }
        assert sum(each["share"] for each in row["areas"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(OutputError, match=r"is not empty; give a new one, or overwrite=true"):
        segment_files(SegmentConfig((images / "images",), path, out))
    first = {name: (out / name).read_bytes() for name in names}
    segment_files(SegmentConfig((images / "images",), path, out, overwrite=True, device="cpu"))
    assert {name: (out / name).read_bytes() for name in names} == first


def test_names_that_occur_twice_and_images_that_cannot_be_read(
    run: tuple[Path, Any, str], images: Path, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.png").write_bytes((images / "images/00.png").read_bytes())
    (tmp_path / "b/y.png").write_bytes(b"nothing")
    paths = (tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match=r"y\.png.*leave such images out with unreadable=skip"):
        segment_files(SegmentConfig(paths, run[0], tmp_path / "stopped"))
    answers = segment_files(SegmentConfig(paths, run[0], tmp_path / "out", unreadable="skip"))
    assert [answer.path.parent.name for answer in answers] == ["a", "b"]
    assert {"0000_x_mask.png", "0001_x_mask.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert "y.png" in json.loads((tmp_path / "out/areas.json").read_text())["skipped"][0]


def test_predict_answers_with_areas(run: tuple[Path, Any, str], images: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    files = tuple(sorted((images / "images").iterdir())[:2])
    answers = predict(PredictConfig(files, run[0], output=tmp_path / "out"), Console(file=said, width=200))
    assert [answer.path for answer in answers] == list(files)
    assert "class 0 " in said.getvalue()
    recalled = load_trained(run[0]).task.recall(answers[0].to_dict())
    assert recalled == answers[0]
    with Image.open(tmp_path / "out/contact_sheet.png") as sheet:
        assert min(sheet.size) > 200
    with pytest.raises(ConfigError, match="threshold and truth are for whole images"):
        predict(PredictConfig(files, run[0], threshold=0.5, output=tmp_path / "out2"))


def test_weights_of_a_classifier_and_of_other_classes_are_a_start(
    run: tuple[Path, Any, str], images: Path, tmp_path: Path
) -> None:
    from vmamba.tasks.segmentation.models import adapt_segmenter

    trained = load_trained(run[0])
    file = vmamba.read_weights(run[0] / "best.safetensors")
    own = trained.model.state_dict()
    with torch.random.fork_rng():
        fresh = trained.task.build(config(images, tmp_path).resolved())
    same = adapt_segmenter(fresh, file, ["class 0", "class 1"], "x")
    assert all(torch.equal(same[name], own[name]) for name in own)
    other = adapt_segmenter(fresh, file, ["no", "yes"], "x")
    changed = {name for name in own if not torch.equal(other[name], own[name])}
    assert changed == {
        f"{head}_head.conv_seg.{part}" for head in ("decode", "auxiliary") for part in ("weight", "bias")
    }
    classifier = vmamba.create_model("vmamba_nano", dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    vmamba.save_weights(tmp_path / "c.safetensors", classifier.state_dict(), {})
    started = adapt_segmenter(fresh, vmamba.read_weights(tmp_path / "c.safetensors"), [], "x")
    key = "layers.0.blocks.0.op.in_proj.weight"
    assert torch.equal(started[f"backbone.{key}"], classifier.state_dict()[key])
    assert torch.equal(started["decode_head.conv_seg.weight"], fresh.state_dict()["decode_head.conv_seg.weight"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "vmamba_nano", "model_options": {}}, "classifies images; segmentation needs one with a decoder"),
        ({"task_options": {"los": 1}}, "segmentation has no 'los'"),
        ({"data": DataConfig("digits")}, "has no class for each pixel"),
        ({"mixup": 0.8}, "are not mixed"),
        ({"task_options": {"class_weights": {"class 0": 1.0}}}, "no weight for"),
    ],
)
def test_what_cannot_be_learnt_is_refused(images: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        train(config(images, tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


def test_masks_are_for_segmentation(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a class for each pixel, not for each image; give task=segmentation"):
        train(TrainConfig(data=DataConfig("masks", images), output=tmp_path / "run"))


def test_dice_balanced_weights_and_patches(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    options = {"loss": "dice", "class_weights": "balanced", "crops": 3, "scale": [1.0, 1.0], "mode": "slide"}
    settings = config(images, tmp_path / "run", epochs=1, epoch_updates=None, task_options=options)
    result = train(settings)
    assert result.epochs == 1
    assert load_trained(tmp_path / "run").task.inference.mode == "slide"  # type: ignore[attr-defined]


def test_a_folder_alone_is_images_and_masks(images: Path, tmp_path: Path) -> None:
    result = vmamba.train(
        data=images,
        task="segmentation",
        model_options=TINY,
        epochs=1,
        epoch_updates=1,
        output=tmp_path / "run",
        num_workers=0,
    )
    assert result.epochs == 1
    words = ["train", "--task", "segmentation", "--data.data_dir", str(images), "--print_config"]
    assert main(words) == 0


@pytest.mark.endless
@pytest.mark.parametrize("model", ["upernet_vmamba_nano", "unet_vmamba_nano"])
def test_shapes_are_learnt_in_minutes(model: str, tmp_path: Path) -> None:
    words = ["demo", "--task", "segmentation", "--model", model, "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "demo")]) == 0
    figures = json.loads((tmp_path / "demo/eval.json").read_text())
    assert figures["miou"] >= 0.85, figures["miou"]
