"""Detection from images to results: train, resume, measure, ask."""

import json

import pytest
import torch
from coco_files import SMALL, content, write
from pycocotools.coco import COCO

import vmamba
from vmamba.data import DataConfig
from vmamba.detect import DetectConfig, detect_files
from vmamba.errors import ConfigError, OutputError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.tasks.detection.objective import DetectionLoss
from vmamba.tasks.detection.task import Detection
from vmamba.tasks.trained import load_trained
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images with rectangles; the second has no object."""
    values = content(8)
    values["annotations"] = [row for row in values["annotations"] if row["image_id"] != 2]
    return write(tmp_path_factory.mktemp("coco"), values)


def config(folder, output, **options):
    fields = {"epochs": 1, "batch_size": 2, "lr": 1e-3, "warmup_epochs": 0, "num_workers": 0, **options}
    return TrainConfig(
        task="detection",
        model="mask_rcnn_vmamba_nano",
        model_options=SMALL,
        data=DataConfig("coco", folder),
        task_options={"resize": [64, 64]},
        output=output,
        device="cpu",
        **fields,
    )


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run's folder, after two epochs."""
    output = tmp_path_factory.mktemp("run") / "run"
    train(config(folder, output, epochs=2))
    return output


def test_a_run_is_measured_and_asked(run, folder, tmp_path):
    lines = (run / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "train_loss_rpn_cls", "train_loss_mask", "val_box_ap", "val_mask_ap50"} <= set(
        lines[0].split(",")
    )
    assert len(lines) == 3
    evaluation = evaluate(EvaluateConfig(run, data=DataConfig("coco", folder), split="all", batch_size=3, device="cpu"))
    assert evaluation.scores.count == 8
    assert 0 <= evaluation.scores.figures["box_ap"] <= 1
    answers = detect_files(DetectConfig((folder / "images",), run, tmp_path / "out", threshold=0.0, device="cpu"))
    assert [answer.path.name for answer in answers] == [f"{i:03d}.png" for i in range(1, 9)]
    listed = json.loads((tmp_path / "out/detections.json").read_text())
    assert [row["id"] for row in listed["categories"]] == [3, 7]
    assert len(listed["images"]) == 8
    assert len(list((tmp_path / "out").glob("*_detected.png"))) == 8
    if json.loads((tmp_path / "out/coco_results.json").read_text()):
        known = COCO(str(folder / "annotations/instances_default.json"))
        assert known.loadRes(str(tmp_path / "out/coco_results.json")).getCatIds() == [7, 3]
    with pytest.raises(OutputError, match="is not empty"):
        detect_files(DetectConfig((folder / "images",), run, tmp_path / "out"))


def test_a_weight_file_says_what_it_detects(run):
    trained = load_trained(run)
    assert isinstance(trained.task, Detection)
    assert trained.task.categories.names == ("a", "b")
    assert trained.task.inference.resize == (64, 64)
    model = vmamba.load(run / "best.safetensors")
    assert isinstance(model, vmamba.MaskRCNN)
    assert model.config == trained.model.config


def test_a_seed_repeats_a_run(folder, run, tmp_path):
    again = tmp_path / "again"
    train(config(folder, again, epochs=2))
    first, second = (load_trained(path).model.state_dict() for path in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_and_resumed_it_is_bitwise_the_same(folder, run, tmp_path, monkeypatch):
    left = iter(range(5, 0, -1))  # of three batches an epoch: in the second
    plain = DetectionLoss.loss

    def loss(*values):
        if next(left) == 1:
            raise KeyboardInterrupt
        return plain(*values)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(DetectionLoss, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            train(config(folder, stopped, epochs=2))
    assert len((stopped / "metrics.csv").read_text().splitlines()) == 2
    train(TrainConfig(resume=stopped, task="detection"))
    for name in ("best", "last"):
        one, other = (vmamba.read_weights(path / f"{name}.safetensors") for path in (run, stopped))
        assert one.metadata == other.metadata
        assert all(torch.equal(value, other.state_dict[key]) for key, value in one.state_dict.items())


def test_it_starts_from_another_detector_or_a_classifier(folder, run, tmp_path):
    train(config(folder, tmp_path / "again", init=run / "best.safetensors"))
    own = vmamba.VSSM(dims=[8, 16, 32, 64], depths=[1, 1, 1, 1], **_NANO)
    vmamba.save_weights(tmp_path / "classifier.safetensors", own.state_dict())
    train(config(folder, tmp_path / "third", init=tmp_path / "classifier.safetensors"))


_NANO = {
    name: value
    for name, value in vmamba.model_config("vmamba_nano").to_dict().items()
    if name not in ("dims", "depths", "num_classes")
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vmamba_nano"}, "detection needs 'mask_rcnn_vmamba_nano'"),
        ({"task_options": {"scale": [1]}}, "detection has no 'scale'; did you mean 'scales'"),
        ({"mixup": 0.2}, "objects are not mixed"),
    ],
)
def test_wrong_options(folder, tmp_path, options, message):
    from dataclasses import replace

    with pytest.raises(ConfigError, match=message):
        train(replace(config(folder, tmp_path / "run"), **options))


def test_the_recipes_are_read():
    from vmamba.train.settings.recipe_files import recipe_dataset

    for name in ("mask_rcnn_1x", "mask_rcnn_3x", "detection_small"):
        assert recipe_dataset(name) == "coco"


@pytest.mark.endless
def test_nano_finds_shapes(tmp_path):
    """Box AP50 ≥ 0.60 and mask AP50 ≥ 0.55 on held-out images, trained as the recipe says."""
    train(TrainConfig(task="detection", output=tmp_path / "run", device="cpu"))
    figures = evaluate(EvaluateConfig(tmp_path / "run", split="test", device="cpu")).scores.figures
    assert figures["box_ap50"] >= 0.60
    assert figures["mask_ap50"] >= 0.55
