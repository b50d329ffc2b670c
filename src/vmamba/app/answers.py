"""What the page shows of an image, without the page: functions from a model and a file to pictures and figures."""

from __future__ import annotations

import importlib.util
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from vmamba.analysis.blocks import trunk_of
from vmamba.analysis.cam import class_map
from vmamba.analysis.classes import Classes
from vmamba.analysis.figures import class_map_figure, scan_map_figure
from vmamba.analysis.look import drawn, pixels_of, viewed
from vmamba.analysis.scan_map import scan_map
from vmamba.data.reading.arrays import preview
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.measure import to_device
from vmamba.kernels.interface import recorded_runs
from vmamba.tasks.detection.prediction import DetectedImage
from vmamba.tasks.detection.task import Detection
from vmamba.tasks.overlay import overlay
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Classes, areas or objects that are listed.
TOP = 5
#: Objects of a lower score are not drawn.
_LEAST_SCORE = 0.3
#: Pixels of the largest image that is taken.
MOST_PIXELS = 50_000_000
#: Longest side of a picture that goes to the browser.
_SHOWN = 1280
#: Shortest side of the image to click on: small ones are made larger.
_CLICKED = 448


@dataclass(frozen=True)
class Answer:
    """What a model says about an image.

    Attributes:
        task: what the model was trained for.
        rows: names and shares in 0 to 1, the largest first: probabilities of classes, parts of the image that classes
            fill, or scores of objects.
        picture: the image with its classes' or objects' colours; None of a classifier.
        milliseconds: of the model alone.
        backends: who computed the scans, such as ``oflex (avx2)``.
        device: where.
    """

    task: str
    rows: tuple[tuple[str, float], ...]
    picture: Image.Image | None
    milliseconds: float
    backends: tuple[str, ...]
    device: str

    def __str__(self) -> str:
        """Latency and backend in a line."""
        scans = ", ".join(self.backends) or "hidden inside the engine"
        return f"{self.milliseconds:.0f} ms on {self.device}; scans by {scans}"


@dataclass(frozen=True)
class _Settings:
    topk: int = TOP
    truth: Literal["none", "folder"] = "none"
    threshold: float | None = None


def check_image(path: Path, most_bytes: int) -> None:
    """Make sure that a file is worth decoding.

    Raises:
        DataError: it is empty, too large, or has more pixels than fit, which its first bytes tell.
    """
    size = path.stat().st_size
    if not size:
        raise DataError(f"cannot read image {path.name}: the file is empty")
    if size > most_bytes:
        raise DataError(f"{path.name} has {size / 1e6:.1f} MB, this page takes {most_bytes / 1e6:.0f}: make it smaller")
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise _too_large(path, "too many") from None
    except (OSError, SyntaxError, ValueError):
        return  # whoever reads it says what is wrong; arrays are no images
    if width * height > MOST_PIXELS:
        raise _too_large(path, f"{width}×{height}")


def _too_large(path: Path, pixels: str) -> DataError:
    most = f"{MOST_PIXELS / 1e6:.0f} million"
    return DataError(f"cannot read image {path.name}: it has {pixels} pixels, this page takes {most}: make it smaller")


def answer(trained: Trained, device: torch.device, path: Path) -> Answer:
    """Ask a model about an image file.

    Raises:
        DataError: the file cannot be read.
    """
    task = trained.task
    inputs = to_device(task.stack([task.read(path)]), device)
    with torch.inference_mode(), recorded_runs() as runs:
        start = time.perf_counter()
        outputs = task.run(trained.model, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = 1e3 * (time.perf_counter() - start)
    backends = tuple(dict.fromkeys(f"{run.backend} ({run.detail})" if run.detail else run.backend for run in runs))
    rows, picture = _described(task, outputs, path)
    return Answer(task.name, rows, picture, took, backends, str(device))


def _described(task: Any, outputs: Any, path: Path) -> tuple[tuple[tuple[str, float], ...], Image.Image | None]:
    if isinstance(task, Segmentation):
        (found,) = task.answers(outputs, [path], _Settings())
        areas = sorted(found.shares.items(), key=lambda row: -row[1])[:TOP]
        return tuple(areas), _small(overlay(preview(path), np.asarray(outputs[0]), task.classes))
    if isinstance(task, Detection):
        seen = DetectedImage.of(path, outputs[0].to("cpu"), task.categories).above(_LEAST_SCORE)
        named = [(f"{i}. {task.categories.names[one.label]}", one.score) for i, one in enumerate(seen.objects[:TOP], 1)]
        return tuple(named), seen.picture(_SHOWN)
    (said,) = task.answers(outputs.cpu(), [path], _Settings())
    return tuple(zip(said.classes, map(float, said.probabilities), strict=True)), None


def seen_by_model(trained: Trained, path: Path) -> Image.Image:
    """The image as the model takes it, large enough to click on.

    Raises:
        DataError: the file cannot be read.
    """
    preprocessing = viewed(trained)
    values = drawn(pixels_of(path, preprocessing), preprocessing)
    shown = Image.fromarray((255 * values).round().astype(np.uint8))
    return shown.resize(seen_size(trained), Image.Resampling.NEAREST)


def seen_size(trained: Trained) -> tuple[int, int]:
    """Width and height of what `seen_by_model` gives, pixels."""
    p = viewed(trained)
    factor = max(1.0, _CLICKED / min(p.width, p.height))
    return round(p.width * factor), round(p.height * factor)


def scan_picture(
    trained: Trained, device: torch.device, path: Path, at: tuple[float, float], stage: int = -2
) -> Image.Image:
    """What a stage's last scan sees from a place.

    Args:
        trained: whose.
        device: where it computes.
        path: the image's file.
        at: row and column as parts of the image as the model takes it, each from 0 to less than 1.
        stage: from 0; negative ones count from the last.

    Raises:
        DataError: the file cannot be read.
        ConfigError: no such place or stage, or a model that shows no scan.
    """
    _check_trunk(trained)
    preprocessing = viewed(trained)
    pixels = pixels_of(path, preprocessing)
    _, height, width = pixels.shape
    query = int(at[0] * height), int(at[1] * width)
    found = scan_map(trained.model, pixels.to(device), query, stage)
    title = f"what the place {found.query} of the {found.weights.shape[2]}×{found.weights.shape[3]} map sees"
    return _drawn_picture(scan_map_figure(found, drawn(pixels, preprocessing), title))


def class_picture(
    trained: Trained, device: torch.device, path: Path, label: int | None = None, stage: int = -1
) -> tuple[Image.Image, int] | None:
    """What speaks for a class.

    Args:
        trained: whose.
        device: where it computes.
        path: the image's file.
        label: the class; by default as `vmamba.analysis.cam.class_map`, a background left out.
        stage: whose last map, from 0; negative ones count from the last.

    Returns:
        The picture and the class; None of a model without classes of its whole output, such as a detector.

    Raises:
        DataError: the file cannot be read.
        ConfigError: no such class or stage, or a model that shows no maps.
    """
    classes = Classes.of(trained.task)
    if not classes.names:
        return None
    _check_trunk(trained)
    preprocessing = viewed(trained)
    pixels = pixels_of(path, preprocessing)
    found = class_map(trained.model, pixels.to(device), label, stage, classes.background)
    shown = drawn(pixels, preprocessing)
    return _drawn_picture(class_map_figure(found, shown, classes.name(found.label))), found.label


def class_names(trained: Trained) -> tuple[str, ...]:
    """The classes that `class_picture` may be asked for, in the order of the logits."""
    return Classes.of(trained.task).names


def stages_of(trained: Trained) -> int:
    """How many stages the model has that scans can be looked at in; 0 of one that shows none."""
    try:
        return len(list(trunk_of(trained.model).stages()))
    except ConfigError:
        return 0


def _check_trunk(trained: Trained) -> None:
    if not stages_of(trained):
        raise ConfigError("this model runs outside of PyTorch, so its scans and maps cannot be looked at")


def _drawn_picture(figure: Figure) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with Image.open(data) as image:
        return image.convert("RGB")


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((_SHOWN, _SHOWN))
    return image


def example_images() -> list[Path]:
    """scikit-learn's two photographs, found without its import, which takes seconds."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    return sorted((Path(found.origin).parent / "datasets" / "images").glob("*.jpg"))
