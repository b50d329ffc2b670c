"""What the page shows, without a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from app_images import written

from vmamba.app import answers
from vmamba.app.models import Models, found_sources
from vmamba.app.serve import AppConfig, check_gradio, uploads_folder
from vmamba.cli.main import main
from vmamba.errors import ConfigError, DataError

CPU = torch.device("cpu")
MOST = 1_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def models(colour_run: Path) -> Models:
    return Models([str(colour_run)], "cpu")


@pytest.mark.parametrize("name", ["plain.png", "animated.gif", "cmyk.jpg", "turned.jpg", "sixteen.png"])
def test_every_kind_of_image_is_answered(models: Models, files: dict[str, Path], name: str) -> None:
    trained, device = models.open(models.names[0])
    answers.check_image(files[name], MOST)
    found = answers.answer(trained, device, files[name])
    assert found.task == "classification"
    assert sum(share for _, share in found.rows) == pytest.approx(1, abs=1e-4)
    assert found.rows[0][1] == max(share for _, share in found.rows)
    assert found.picture is None
    assert found.backends
    assert "ms on cpu; scans by" in str(found)
    seen = np.asarray(answers.seen_by_model(trained, files[name]), float)
    assert seen.shape[:2] == (448, 448)
    assert seen[:150].mean() < 30 < 60 < seen[300:].mean()  # upright, its first picture, its whole range


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.jpg", "not an image that Pillow knows"),
        ("empty.png", "the file is empty"),
        ("huge.png", "this page takes 50 million"),
    ],
)
def test_every_other_file_has_one_message(models: Models, files: dict[str, Path], name: str, message: str) -> None:
    trained, device = models.open(models.names[0])
    with pytest.raises(DataError, match=message) as error:  # noqa: PT012 — whichever of the two it is
        answers.check_image(files[name], MOST)
        answers.answer(trained, device, files[name])
    assert "\n" not in str(error.value)


def test_large_files_are_refused_by_their_size(files: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"plain\.png has .* MB, this page takes 0"):
        answers.check_image(files["plain.png"], 10)


def test_the_scan_map_follows_the_place(models: Models, files: dict[str, Path]) -> None:
    trained, device = models.open(models.names[0])
    count = answers.stages_of(trained)
    assert count == 2
    first, same, other = (
        np.asarray(answers.scan_picture(trained, device, files["plain.png"], at, 0))
        for at in ((0.1, 0.1), (0.1, 0.1), (0.9, 0.6))
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    named = answers.class_names(trained)
    assert named == ("blue", "green", "red")
    likeliest = answers.answer(trained, device, files["plain.png"]).rows[0][0]
    pictures = {}
    for label in (None, 0, 1, 2):
        found = answers.class_picture(trained, device, files["plain.png"], label, 0)
        assert found is not None
        assert found[1] == (named.index(likeliest) if label is None else label)
        pictures[label] = found[0].tobytes()
    assert len(set(pictures.values())) == 3
    with pytest.raises(ConfigError, match="stage=7"):
        answers.scan_picture(trained, device, files["plain.png"], (0.5, 0.5), 7)


def test_segmenters_and_detectors_give_overlays(files: dict[str, Path], tmp_path: Path) -> None:
    import vmamba
    from vmamba.data.detection.categories import Categories
    from vmamba.data.preprocessing import Preprocessing
    from vmamba.data.segmentation.classes import PixelClasses
    from vmamba.data.segmentation.masks import MaskFormat
    from vmamba.tasks.detection.task import Detection
    from vmamba.tasks.segmentation.task import Segmentation
    from vmamba.tasks.trained import Trained

    p = Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)
    tiny = {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    torch.manual_seed(0)
    segmenter = vmamba.create_model("upernet_vmamba_nano", num_classes=3, decode_head={"channels": 8}, **tiny).eval()
    task = Segmentation(PixelClasses.of(["background", "disc", "square"]), p, MaskFormat(3))
    found = answers.answer(Trained(segmenter, task, tmp_path, "s"), CPU, files["plain.png"])
    assert found.picture is not None
    assert found.picture.size == (32, 24)
    assert sum(share for _, share in found.rows) == pytest.approx(1)
    with torch.no_grad():
        segmenter.decode_head.conv_seg.bias[1] += 1
    mapped = answers.class_picture(Trained(segmenter, task, tmp_path, "s"), CPU, files["plain.png"])
    assert mapped is not None
    assert task.classes.names[mapped[1]] == "disc"
    model = vmamba.create_model("mask_rcnn_vmamba_nano", num_classes=2, **tiny).eval()
    kinds = Detection(Categories.of([(1, "a"), (2, "b")]), p).configured({"resize": [64, 64]})
    detector = Trained(model, kinds, tmp_path, "d")
    assert answers.answer(detector, CPU, files["plain.png"]).picture is not None
    assert answers.class_picture(detector, CPU, files["plain.png"]) is None


def test_models_are_those_offered_and_few_stay_loaded(colour_run: Path, tmp_path: Path) -> None:
    models = Models([str(colour_run)])
    assert models.open(str(colour_run))[0] is models.open(str(colour_run))[0]
    with pytest.raises(ConfigError, match="none of the models of this page"):
        models.open(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no model to show"):
        Models([])
    assert str(colour_run) in found_sources(colour_run.parent)
    assert str(colour_run) not in found_sources(tmp_path / "none")


def test_uploads_lie_apart_and_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with uploads_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (folder / "a").write_text("kept for the time")
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_by_default_it_is_for_this_machine_alone() -> None:
    config = AppConfig()
    assert (config.host, config.share) == ("127.0.0.1", False)
    assert len(answers.example_images()) == 2


def test_mistakes_are_one_line(
    colour_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--port", "99999"], "port=99999: want 0 to 65535"),
        ([str(tmp_path / "none.pth")], "none.pth does not exist"),
        ([str(colour_run), "--examples", str(tmp_path / "no.png")], "no.png"),
    ):
        assert main(["app", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs Gradio, which is not installed: pip install "vmamba\[app\]"'):
        check_gradio()
