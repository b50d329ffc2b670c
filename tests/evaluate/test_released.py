"""Upstream's weights, by name or as a bare file: ImageNet's classes and preprocessing, folders by WordNet ids."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from vmamba.cli.main import main
from vmamba.data import DataConfig, imagenet_class_ids, imagenet_class_names, read_image
from vmamba.errors import CheckpointError, DataError
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.evaluate.predict import PredictConfig, predict
from vmamba.tasks.classification.prediction import right_of
from vmamba.tasks.trained import load_trained
from vmamba.weights import OFFICIAL, OfficialWeights

NAME = "vmamba_nano"  # upstream released none of this size
#: Two of them are called "crane".
IDS = ("n01440764", "n02012849", "n03126707", "n15075141")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as upstream writes them: weights under "model", and nothing about classes."""
    path = tmp_path_factory.mktemp("bare") / "vssm_nano.pth"
    torch.manual_seed(0)
    model = vmamba.create_model(NAME)
    with torch.no_grad():
        model.classifier.head.weight *= 20
    torch.save({"model": model.state_dict(), "epoch": 292}, path)
    return path


@pytest.fixture(autouse=True)
def released(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfficialWeights:
    """As if it had been released, and lay in torch hub's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    weights = OfficialWeights(NAME, "http://127.0.0.1:9/vssm_nano.pth")
    monkeypatch.setitem(OFFICIAL, NAME, weights)
    weights.path.parent.mkdir(parents=True)
    weights.path.write_bytes(bare.read_bytes())
    return weights


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures for each of four of ImageNet's classes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for name in IDS:
        (root / name).mkdir()
        for i in range(3):
            Image.fromarray(random.randint(0, 255, (70, 90, 3)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_imagenets_classes_have_ids_of_their_own() -> None:
    ids, names = imagenet_class_ids(), imagenet_class_names()
    assert list(ids) == sorted(set(ids))
    assert len(ids) == len(names) == 1000
    assert (names[ids.index("n02012849")], names[ids.index("n03126707")]) == ("crane", "crane")


@pytest.mark.parametrize("by", ["name", "file"])
def test_they_predict_imagenets_classes_from_upstreams_preprocessing(by: str, bare: Path, photos: Path) -> None:
    trained = load_trained(NAME if by == "name" else bare)
    p = trained.preprocessing
    assert (p.image_size, p.in_chans, p.interpolation, p.crop_pct) == (224, 3, "bicubic", 0.875)
    assert (p.mean, p.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (trained.name, trained.task.classes, trained.released) == (NAME, imagenet_class_names(), True)
    image = photos / IDS[0] / "0.png"
    assert main(["predict", str(image), "--weights", NAME if by == "name" else str(bare), "--device", "cpu"]) == 0
    (answer,) = json.loads(Path("predictions/predictions.json").read_text())["predictions"]
    with torch.inference_mode():
        logits = trained.model(p.eval_transform()(read_image(image, 3))[None])
    assert imagenet_class_names()[int(logits.argmax())] == answer["top"][0]["class"].split(" (n")[0]


def test_folders_are_matched_by_wordnet_ids(photos: Path) -> None:
    assert main(["eval", NAME, "--data.data_dir", str(photos), "--json", "e.json", "--device", "cpu"]) == 0
    found = json.loads(Path("e.json").read_text())
    assert (found["split"], found["images"], found["model"]) == ("all", 12, NAME)
    seen = {row["name"]: row["images"] for row in found["classes"] if row["images"]}
    cranes = {"crane (n02012849)": 3, "crane (n03126707)": 3}
    names = dict(zip(imagenet_class_ids(), imagenet_class_names(), strict=True))
    assert seen == {names[IDS[0]]: 3, names[IDS[3]]: 3, **cranes}
    assert len(found["classes"]) == len({row["name"] for row in found["classes"]}) == 1000

    trained = load_trained(NAME)
    with torch.inference_mode():
        right = [
            int(trained.model(trained.task.read(photos / name / f"{i}.png")[None]).argmax())
            == imagenet_class_ids().index(name)
            for name in IDS
            for i in range(3)
        ]
    assert found["top1"] == pytest.approx(sum(right) / 12)


def test_the_true_class_may_be_an_id_but_not_a_name_of_two(photos: Path, tmp_path: Path) -> None:
    image = photos / IDS[1] / "0.png"
    (answer,) = predict(PredictConfig((image,), Path(NAME), output=tmp_path / "o", sheet=0, truth="folder"))
    assert answer.truth == "crane (n02012849)"
    assert answer.right == (answer.classes[0] == answer.truth)
    assert right_of([answer]).endswith("of 1 right")
    crane = tmp_path / "crane" / "0.png"
    crane.parent.mkdir()
    crane.write_bytes(image.read_bytes())
    with pytest.raises(DataError, match=r"folder 'crane', but classes 134 and 517 are both .*ids \(n01440764, …\)"):
        predict(PredictConfig((crane,), Path(NAME), output=tmp_path / "o", sheet=0, truth="folder"))


def test_other_folders_are_refused(colour_images: Path) -> None:
    with pytest.raises(DataError, match=r"3 classes \(blue, green, red\).*1000 classes .*ids \(n01440764, …\)"):
        evaluate(EvaluateConfig(Path(NAME), DataConfig("folder", colour_images)))


def test_a_divided_tree_is_measured_on_its_validation_images(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "net").mkdir(exist_ok=True)
        (tmp_path / "net" / part).symlink_to(photos)
    measured = evaluate(EvaluateConfig(Path(NAME), DataConfig("folder", tmp_path / "net")))
    assert (measured.split, measured.scores.count) == ("val", 12)
    (tmp_path / "net/train").unlink()
    with pytest.raises(DataError, match=r"only one class folder, 'val'.*give data_dir=.*net/val"):
        evaluate(EvaluateConfig(Path(NAME), DataConfig("folder", tmp_path / "net")))


def test_what_is_missing_is_named(
    released: OfficialWeights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    released.path.unlink()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    image = str(photos / IDS[0] / "0.png")
    assert main(["predict", image, "--weights", NAME]) == 2
    assert f"{released.url} by other means and put it at {released.path}" in capsys.readouterr().err
    assert main(["predict", image, "--weights", "vmamba_tinny_s1l8"]) == 2
    assert "did you mean 'vmamba_tiny_s1l8'" in capsys.readouterr().err
    assert main(["eval", NAME]) == 2
    assert f"{NAME} comes without images: name some with data.data_dir" in capsys.readouterr().err


def test_only_networks_that_were_released_are_taken_for_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(vmamba.create_model(NAME, num_classes=10).state_dict(), tmp_path / "ten.pth")
    with pytest.raises(CheckpointError, match=r"ten\.pth does not say which model"):
        load_trained(tmp_path / "ten.pth")
    monkeypatch.delitem(OFFICIAL, NAME)
    torch.save(vmamba.create_model(NAME).state_dict(), tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"own\.pth does not say which model"):
        load_trained(tmp_path / "own.pth")
