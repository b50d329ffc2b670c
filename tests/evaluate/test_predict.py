"""Prediction: the answers, which files are found, unreadable ones, and what is written and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vmamba.data import read_image
from vmamba.errors import ConfigError, DataError, OutputError
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.predict import PredictConfig, find_images, predict
from vmamba.tasks.classification.contact_sheet import contact_sheet
from vmamba.tasks.classification.prediction import Prediction, right_of
from vmamba.tasks.classification.report import MAX_DETAILED, bar, report
from vmamba.tasks.trained import load_trained


def some(colour_images: Path, count: int = 2) -> tuple[Path, ...]:
    return tuple(colour_images / name / f"{i:02d}.png" for name in ("red", "green", "blue") for i in range(count))


def test_the_answers_are_the_models(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    paths = some(colour_images)
    predictions = predict(PredictConfig(paths, colour_run, output=tmp_path / "out", batch_size=4, device="cpu"))
    assert [p.path for p in predictions] == list(paths)
    assert [p.classes[0] for p in predictions] == ["red", "red", "green", "green", "blue", "blue"]

    trained = load_trained(colour_run)
    pixels = torch.stack([trained.preprocessing.eval_transform()(read_image(path, 3)) for path in paths])
    with torch.inference_mode():
        want = trained.model(pixels).softmax(1)
    for prediction, row in zip(predictions, want, strict=True):
        got = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        torch.testing.assert_close(
            torch.tensor([got[name] for name in trained.task.classes]), row, rtol=1e-4, atol=1e-5
        )
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)


def test_an_image_is_turned_upright(colour_run: Path, tmp_path: Path) -> None:
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:8, :, 0] = 255
    pixels[8:, :5, 1] = 200
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    one, other = predict(
        PredictConfig((tmp_path / "upright.png", tmp_path / "turned.png"), colour_run, output=tmp_path / "out")
    )
    assert one.classes == other.classes
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_folders_are_searched_through(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpeg", "a/x/y.webp", "top.bmp", ".hidden/z.png", "b/.z.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "top.bmp", tmp_path, tmp_path / "b/notes.txt"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    # A file given by name is taken whatever it is called, and nothing twice.
    assert names == ["top.bmp", "a/x/y.webp", "b/10.jpeg", "b/2.PNG", "b/notes.txt"]


def test_paths_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image or folder .*nothing\.png"):
        find_images([tmp_path / "nothing.png"])
    with pytest.raises(DataError, match=r"no images in .*ends in \.bmp"):
        find_images([tmp_path])


def broken(tmp_path: Path, colour_images: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "bad.png").write_bytes(some(colour_images)[0].read_bytes()[:60])
    (folder / "good.png").write_bytes(some(colour_images)[0].read_bytes())
    return folder


def test_an_unreadable_image_stops_or_is_left_out(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    folder = broken(tmp_path, colour_images)
    config = PredictConfig((folder,), colour_run, output=tmp_path / "out")
    with pytest.raises(DataError, match=r"bad\.png.*unreadable=skip"):
        predict(config)
    assert not config.output.exists()

    text = io.StringIO()
    config = PredictConfig((folder,), colour_run, output=tmp_path / "out", unreadable="skip")
    (prediction,) = predict(config, Console(file=text, width=400))
    assert prediction.path.name == "good.png"
    assert "left out: cannot read image" in text.getvalue()
    written = json.loads((config.output / "predictions.json").read_text())
    assert len(written["predictions"]) == 1
    assert "bad.png" in written["skipped"][0]

    (folder / "good.png").unlink()
    with pytest.raises(DataError, match=r"none of the 1 images can be read.*bad\.png"):
        predict(config)


def test_the_files(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    config = PredictConfig(
        some(colour_images), colour_run, topk=2, output=tmp_path / "out", json=tmp_path / "x" / "p.json", truth="folder"
    )
    predictions = predict(config)
    assert sorted(path.name for path in config.output.iterdir()) == ["contact_sheet.png", "predictions.json"]
    written = json.loads((config.output / "predictions.json").read_text())
    assert (tmp_path / "x" / "p.json").read_text() == (config.output / "predictions.json").read_text()
    assert written["model"] == "vmamba_nano"
    first = written["predictions"][0]
    assert first["path"] == str(predictions[0].path)
    assert first["truth"] == "red"
    assert [answer["class"] for answer in first["top"]] == list(predictions[0].classes)
    assert len(first["top"]) == 2

    predict(PredictConfig(some(colour_images), colour_run, output=tmp_path / "no-sheet", sheet=0))
    assert [path.name for path in (tmp_path / "no-sheet").iterdir()] == ["predictions.json"]


def test_the_truth_is_the_folders_name_where_that_is_a_class(
    colour_run: Path, colour_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "purple").mkdir()
    stray = tmp_path / "purple" / "x.png"
    stray.write_bytes(some(colour_images)[0].read_bytes())
    predictions = predict(
        PredictConfig((some(colour_images)[0], stray), colour_run, output=tmp_path / "o", truth="folder")
    )
    assert [p.truth for p in predictions] == ["red", None]
    assert [p.right for p in predictions] == [True, None]
    assert right_of(predictions) == "1 of 1 right"


def test_features_are_what_the_head_sees(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    for weights in (colour_run, colour_run / "best.safetensors"):
        config = PredictConfig(
            (colour_images,), weights, output=tmp_path / "out", sheet=0, features=tmp_path / "f" / "x.npz", batch_size=7
        )
        text = io.StringIO()
        answers = predict(config, Console(file=text, width=300))
        with np.load(tmp_path / "f" / "x.npz") as file:  # no pickles in it
            features, names = file["features"], file["names"]
        assert (features.shape, features.dtype) == ((45, 16), np.float32)
        assert names.tolist() == [str(answer.path) for answer in answers]
        assert f"wrote {config.features}" in text.getvalue()
        assert [path.name for path in (tmp_path / "f").iterdir()] == ["x.npz"]
    trained = load_trained(colour_run)
    with torch.inference_mode():
        for row in (0, 20, 44):
            pixels = trained.task.read(Path(names[row]))[None]
            want = trained.model.forward_head(trained.model.forward_features(pixels), pre_logits=True)[0]
            torch.testing.assert_close(torch.from_numpy(features[row]), want, rtol=1e-4, atol=1e-5)
            logits = trained.model.classifier.head(want)
            assert trained.task.classes[int(logits.argmax())] == answers[row].classes[0]


def test_features_of_readable_images_only(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    config = PredictConfig(
        (broken(tmp_path, colour_images),), colour_run, output=tmp_path / "out", sheet=0, features=tmp_path / "x.npz",
        unreadable="skip",
    )  # fmt: skip
    predict(config)
    with np.load(tmp_path / "x.npz") as file:
        assert (file["features"].shape, [Path(name).name for name in file["names"]]) == ((1, 16), ["good.png"])


def test_features_that_cannot_be(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    images = some(colour_images)
    for name in ("x.npy", "x.csv", "x"):
        with pytest.raises(ConfigError, match=r"features=.*give a name that ends in \.npz.*names"):
            PredictConfig(images, colour_run, features=tmp_path / name)
    with pytest.raises(ConfigError, match=r"m\.onnx is an exported file.*give the run's folder or a weight file"):
        PredictConfig(images, tmp_path / "m.onnx", features=tmp_path / "x.npz")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        predict(PredictConfig(images, tmp_path / "no-run", features=tmp_path / "file" / "x.npz"))


def test_an_unwritable_folder_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        predict(PredictConfig((tmp_path,), tmp_path / "no-run", output=tmp_path / "file" / "out"))


@pytest.mark.parametrize("fields", [{"topk": 0}, {"batch_size": 0}, {"sheet": -1}, {"paths": ()}])
def test_illegal_fields(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PredictConfig(**{"paths": (Path("a.png"),), "weights": Path("w"), **fields})  # type: ignore[arg-type]


def answers(paths: list[Path], truth: str | None = None) -> list[Prediction]:
    return [Prediction(path, ("red", "green"), (0.75, 0.25), truth) for path in paths]


def test_the_sheet_shows_what_there_is(colour_images: Path) -> None:
    odd = [Prediction(some(colour_images)[0], ("$x_1$", "a name much longer than a bar is wide"), (1.0, 0.0), "b")]
    figure = contact_sheet(odd + answers(list(some(colour_images))), total=9, title="the title")
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["the title", "the first 7 of 9 images, 0 of 1 right"]
    assert "$x_1$" in texts
    assert "is b" in texts
    assert texts.count("75.0%") == 6
    assert "<0.1%" in texts
    assert len(axes.images) == 7
    figure.savefig(io.BytesIO())  # every text can be drawn


def test_the_sheet_draws_its_images(colour_images: Path, tmp_path: Path) -> None:
    """The picture's own colour is on the sheet: it is not hidden behind its panel."""
    save_figure(contact_sheet(answers([some(colour_images)[0]]), 1, "t"), tmp_path / "sheet.png")
    drawn = np.asarray(read_image(tmp_path / "sheet.png", 3)).astype(float)
    red = (drawn[..., 0] - drawn[..., 1]) > 60
    assert red.mean() > 0.1


def test_the_terminal_shows_bars_for_few_and_lines_for_many() -> None:
    def text(count: int, truth: str | None = None) -> str:
        out = io.StringIO()
        report(answers([Path(f"[b]{i}.png") for i in range(count)], truth), Console(file=out, width=100))
        return out.getvalue()

    few = text(MAX_DETAILED)
    assert few.count("red") == few.count("green") == MAX_DETAILED
    assert "[b]0.png" in few  # not markup
    many = text(MAX_DETAILED + 1, "green")
    assert many.count("75.0%") == MAX_DETAILED + 1
    assert "0 of 9 right" in many


@pytest.mark.parametrize(
    ("share", "want"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (1 / 32, "▏"), (7 / 32, "▉"), (0.28, "█▏")]
)
def test_bars_are_exact_to_an_eighth(share: float, want: str) -> None:
    assert bar(share, 4) == want


def test_a_missing_image_is_told_before_weights_are_downloaded(tmp_path: Path) -> None:
    config = PredictConfig((tmp_path / "none.png",), Path("vmamba_tiny_s1l8"), output=tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=r"none\.png"):
        predict(config)
