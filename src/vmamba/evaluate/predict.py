"""Classify image files with trained weights: the likeliest classes of each, as data, on the terminal and as a sheet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vmamba.data import IMAGE_SUFFIXES, read_image
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.predictor import Classifier, load_classifier
from vmamba.output import check_writable_file, check_writable_folder, create_folder, write_json
from vmamba.tasks.classification.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

SHEET_NAME = "contact_sheet.png"
JSON_NAME = "predictions.json"


@dataclass(frozen=True)
class PredictConfig:
    """What to classify, with what, and where the results go.

    Attributes:
        paths: Image files, and folders that are searched through and through.
        weights: Run folder (its best weights), a weight file that a run wrote, or an ONNX file of `vmamba export`.
        topk: Classes shown for each image, likeliest first.
        output: Folder for contact_sheet.png and predictions.json.
        json: Another file for the JSON.
        sheet: Most images on the contact sheet; 0 = no sheet.
        truth: What tells an image's true class, so that wrong answers can be marked: none, or folder = the name of the
            folder it lies in.
        unreadable: Whether an image that cannot be decoded stops the command, or is left out and counted.
        batch_size: Images in one forward pass.
        device: auto, cpu, cuda, mps or xpu.
    """

    paths: tuple[Path, ...]
    weights: Path
    topk: int = 5
    output: Path = Path("predictions")
    json: Path | None = None
    sheet: int = 60
    truth: Literal["none", "folder"] = "none"
    unreadable: Literal["stop", "skip"] = "stop"
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("topk", 1), ("batch_size", 1), ("sheet", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: want a whole number, {least} or more")
        if not self.paths:
            raise ConfigError("no image or folder given")


def predict(config: PredictConfig, console: Console | None = None) -> list[Prediction]:
    """Classify images, print the answers to ``console``, and write the contact sheet and the JSON.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: there is no image, or one cannot be read; names it. Nothing has been written then.
        OutputError: a place cannot be written; noticed before anything is computed.
    """
    check_writable_folder(config.output)
    if config.json is not None:
        check_writable_file(config.json)
    trained, device = load_classifier(config.weights, config.device)
    files = find_images(config.paths)

    skipped: list[DataError] = []
    predictions: list[Prediction] = []
    for paths, pixels in _batches(files, trained, config, skipped):
        predictions += _classify(trained, paths, pixels, config, device)
    if not predictions:
        raise DataError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")

    sheet = _sheet(predictions, trained, config)
    create_folder(config.output)
    written = []
    if sheet is not None:
        written.append(config.output / SHEET_NAME)
        save_figure(sheet, written[0])
    for path in (config.output / JSON_NAME, config.json):
        if path is not None:
            written.append(path)
            write_json(path, _json(predictions, trained, skipped))
    if console is not None:
        from vmamba.tasks.classification.report import report

        report(predictions, skipped, console)
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return predictions


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths`` and the images inside its folders, hidden ones apart, folders in sorted order.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_walk(path))
            if not inside:
                raise DataError(f"no images in {path}: no file in it ends in {', '.join(IMAGE_SUFFIXES)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"no image or folder {path}")
    return list(dict.fromkeys(found))


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(place) / name


def _batches(
    files: Sequence[Path], trained: Classifier, config: PredictConfig, skipped: list[DataError]
) -> Iterator[tuple[list[Path], Tensor]]:
    transform = trained.preprocessing.eval_transform()
    for start in range(0, len(files), config.batch_size):
        paths, pixels = [], []
        for path in files[start : start + config.batch_size]:
            try:
                pixels.append(transform(read_image(path, trained.preprocessing.in_chans)))
                paths.append(path)
            except DataError as error:
                if config.unreadable == "stop":
                    raise DataError(f"{error}; leave such images out with unreadable=skip") from error
                skipped.append(error)
        if paths:
            yield paths, torch.stack(pixels)


def _classify(
    trained: Classifier, paths: Sequence[Path], pixels: Tensor, config: PredictConfig, device: torch.device
) -> list[Prediction]:
    with torch.inference_mode():
        logits = trained.model.to(device)(pixels.to(device))
        top = logits.float().softmax(dim=1).topk(min(config.topk, len(trained.classes)), dim=1)
    return [
        Prediction(
            path,
            tuple(trained.classes[i] for i in indices),
            tuple(probabilities),
            _truth(path, trained) if config.truth == "folder" else None,
        )
        for path, indices, probabilities in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _truth(path: Path, trained: Classifier) -> str | None:
    name = path.absolute().parent.name
    return name if name in trained.classes else None


def _sheet(predictions: Sequence[Prediction], trained: Classifier, config: PredictConfig) -> Figure | None:
    if not config.sheet:
        return None
    from vmamba.tasks.classification.contact_sheet import contact_sheet

    return contact_sheet(predictions[: config.sheet], len(predictions), f"{trained.name} ({trained.weights_path})")


def _json(predictions: Sequence[Prediction], trained: Classifier, skipped: Sequence[DataError]) -> dict[str, Any]:
    return {
        "model": trained.name,
        "weights": str(trained.weights_path),
        "predictions": [prediction.to_dict() for prediction in predictions],
        "skipped": [str(error) for error in skipped],
    }
