"""What trained weights say about image files: as data, on the terminal and as a sheet, as their task has it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vmamba.data import IMAGE_SUFFIXES
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.features import watch_head, write_features
from vmamba.evaluate.measure import to_device
from vmamba.evaluate.pictures import save_figure
from vmamba.output import check_writable_file, check_writable_folder, create_folder, write_json
from vmamba.tasks.protocol import Answer
from vmamba.tasks.trained import Trained, open_trained

if TYPE_CHECKING:
    from rich.console import Console

SHEET_NAME = "contact_sheet.png"
JSON_NAME = "predictions.json"


@dataclass(frozen=True)
class PredictConfig:
    """Which images to ask about, with what, and where the answers go.

    Attributes:
        paths: Image files, and folders that are searched through and through.
        weights: Run folder (its best weights), a weight file that a run wrote, an ONNX file of `vmamba export`, or a
            model's name or upstream's own file for released weights.
        topk: Classes shown for each image, likeliest first.
        threshold: Probability from which on a label holds, of models with several labels an image; by default each
            label's own, found on the validation images.
        output: Folder for contact_sheet.png and predictions.json.
        json: Another file for the JSON.
        features: An .npz file for what the model's head sees of each image: float32 features (N, c), names (N,).
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
    threshold: float | None = None
    output: Path = Path("predictions")
    json: Path | None = None
    features: Path | None = None
    sheet: int = 60
    truth: Literal["none", "folder"] = "none"
    unreadable: Literal["stop", "skip"] = "stop"
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("topk", 1), ("batch_size", 1), ("sheet", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: want a whole number, {least} or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: a probability, want 0 to 1")
        if not self.paths:
            raise ConfigError("no image or folder given")
        if self.features is not None:
            if self.features.suffix != ".npz":
                raise ConfigError(
                    f"features={self.features}: give a name that ends in .npz, the format that holds the images' names "
                    "beside their features"
                )
            if self.weights.suffix.lower() == ".onnx" and not self.weights.is_dir():
                raise ConfigError(
                    f"features={self.features}: {self.weights} is an ONNX file, which gives a model's last output "
                    "alone; give the run's folder or a weight file"
                )


def predict(config: PredictConfig, console: Console | None = None) -> list[Answer]:
    """Ask about images, print the answers to ``console``, and write the contact sheet and the JSON.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: there is no image, or one cannot be read; names it. Nothing has been written then.
        OutputError: a place cannot be written; noticed before anything is computed.
    """
    check_writable_folder(config.output)
    for place in (config.json, config.features):
        if place is not None:
            check_writable_file(place)
    files = find_images(config.paths)  # before weights are downloaded
    trained, device = open_trained(config.weights, config.device)

    task, model = trained.task, trained.model.to(device)
    skipped: list[DataError] = []
    answers: list[Answer] = []
    seen: list[Tensor] = []
    with torch.inference_mode(), watch_head(trained, seen) if config.features else nullcontext():
        for paths, inputs in _batches(files, trained, config, skipped):
            answers += task.answers(model(to_device(inputs, device)), paths, config)
    if not answers:
        raise DataError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")

    written = _write(config, answers, trained, skipped)
    if config.features is not None:
        write_features(config.features, seen, [answer.path for answer in answers])
        written.append(config.features)
    if console is not None:
        task.print_answers(answers, console)
        for error in skipped:
            console.print(f"left out: {error}", soft_wrap=True, markup=False)
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return answers


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
    files: Sequence[Path], trained: Trained, config: PredictConfig, skipped: list[DataError]
) -> Iterator[tuple[list[Path], Any]]:
    for start in range(0, len(files), config.batch_size):
        paths, inputs = [], []
        for path in files[start : start + config.batch_size]:
            try:
                inputs.append(trained.task.read(path))
                paths.append(path)
            except DataError as error:
                if config.unreadable == "stop":
                    raise DataError(f"{error}; leave such images out with unreadable=skip") from error
                skipped.append(error)
        if paths:
            yield paths, trained.task.stack(inputs)


def _write(
    config: PredictConfig, answers: Sequence[Answer], trained: Trained, skipped: Sequence[DataError]
) -> list[Path]:
    """Write the contact sheet and the JSON, and return their paths. The sheet is drawn before anything is written."""
    sheet = None
    if config.sheet:
        title = f"{trained.name} ({trained.weights_path})"
        sheet = trained.task.sheet(answers[: config.sheet], len(answers), title)
    create_folder(config.output)
    written = []
    if sheet is not None:
        written.append(config.output / SHEET_NAME)
        save_figure(sheet, written[0])
    values = {
        "model": trained.name,
        "weights": str(trained.weights_path),
        "predictions": [answer.to_dict() for answer in answers],
        "skipped": [str(error) for error in skipped],
    }
    for path in (config.output / JSON_NAME, config.json):
        if path is not None:
            written.append(path)
            write_json(path, values)
    return written
