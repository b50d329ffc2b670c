"""What `vmamba segment` does: a class for every pixel of images, as overlays, masks, a legend and areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vmamba.data.reading.arrays import preview
from vmamba.data.reading.images import IMAGE_SUFFIXES
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.one_by_one import check_results_folder, one_by_one, tell, write_png
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.predict import ALL_SUFFIXES, find_images
from vmamba.output import create_folder, write_json
from vmamba.tasks.overlay import legend_figure, mask_image, overlay
from vmamba.tasks.segmentation.prediction import SegmentedImage
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import Trained, open_trained

if TYPE_CHECKING:
    from rich.console import Console

LEGEND, AREAS = "legend.png", "areas.json"


@dataclass(frozen=True)
class SegmentConfig:
    """Which images to segment, with what, how, and where the results go.

    Attributes:
        paths: Image files, and folders that are searched through and through.
        weights: Run folder (its best weights), a weight file that a run wrote, a file of `vmamba export` (.onnx, .xml,
            .pt2), or a model's name for its released weights.
        output: Folder for two files an image, legend.png and areas.json.
        mode: Whether an image goes through the network whole, or in windows (slide), which needs less memory; by
            default as the weights say.
        window: Side of a window, pixels.
        stride: Pixels from one window to the next.
        blend: What a window's scores count in the mean: mean (all the same), triangular or gaussian.
        scales: Factors on the image's own size whose answers are averaged, such as [0.75, 1.0, 1.25].
        flip: Whether to average with the mirrored image's answer too.
        overwrite: Whether files in the output folder may be replaced.
        unreadable: Whether an image that cannot be decoded stops the command, or is left out and counted.
        device: auto, cpu, cuda, mps or xpu.
    """

    paths: tuple[Path, ...]
    weights: Path
    output: Path = Path("segmented")
    mode: Literal["whole", "slide"] | None = None
    window: int | None = None
    stride: int | None = None
    blend: Literal["mean", "triangular", "gaussian"] | None = None
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    overwrite: bool = False
    unreadable: Literal["stop", "skip"] = "stop"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("no image or folder given")

    @property
    def options(self) -> dict[str, Any]:
        """What the task is to do otherwise than its weights say."""
        names = ("mode", "window", "stride", "blend", "scales", "flip")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def segment_files(config: SegmentConfig, console: Console | None = None) -> list[SegmentedImage]:
    """Segment images one by one, in the order given, those of a folder sorted, and write what came of each.

    For ``photo.jpg`` that are ``photo_overlay.png``, the classes' colours over the image, and ``photo_mask.png``, whose
    pixels are the classes' numbers. The legend and the areas come last, when all images are done.

    Returns:
        an answer for each image that could be read, without its picture.

    Raises:
        CheckpointError: the weights cannot be used. ConfigError: they do not segment, or an option makes no sense.
        DataError: there is no image, or one cannot be read; names it.
        OutputError: the folder is not empty, or cannot be written; noticed before anything is computed.
    """
    check_results_folder(config.output, config.overwrite)
    files = find_images(config.paths, ALL_SUFFIXES)  # before weights are downloaded
    trained, device = open_trained(config.weights, config.device)
    task = trained.task
    if not isinstance(task, Segmentation):
        raise ConfigError(f"{config.weights} was trained for {task.name}, which `vmamba predict` answers")
    if not task.preprocessing.full_depth:
        files = find_images(config.paths, IMAGE_SUFFIXES)
    task = task.configured(config.options)
    trained = replace(trained, task=task)
    trained.model.to(device)
    create_folder(config.output)
    answers: list[SegmentedImage] = []
    skipped: list[str] = []
    for asked in one_by_one(task, trained.model, files, config.unreadable, device):
        if asked.fault is not None:
            skipped.append(asked.fault)
            continue
        labels = np.asarray(asked.output)
        write_png(config.output / f"{asked.name}_overlay.png", overlay(_shown(asked.path), labels, task.classes))
        write_png(config.output / f"{asked.name}_mask.png", mask_image(labels, task.classes))
        answers.append(replace(SegmentedImage.of(asked.path, labels, task.classes), small=None))
    if not answers:
        raise DataError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")
    _finish(config, trained, task, answers, skipped)
    written = f"wrote {len(answers)} overlay(s) and mask(s), {LEGEND} and {AREAS} to {config.output}"
    tell(console, task, answers, skipped, written)
    return answers


def _shown(path: Path) -> Image.Image:
    image = preview(path)
    return image if image.mode == "RGB" else image.convert("RGB")


def _finish(
    config: SegmentConfig,
    trained: Trained,
    task: Segmentation,
    answers: Sequence[SegmentedImage],
    skipped: Sequence[str],
) -> None:
    seen = {name for answer in answers for name in answer.pixels}
    places = [index for index, name in enumerate(task.classes.names) if name in seen or len(task.classes) <= 25]
    save_figure(legend_figure(task.classes, places), config.output / LEGEND)
    classes = [
        {"class": name, "number": index, "colour": list(task.classes.palette[index])}
        for index, name in enumerate(task.classes.names)
    ]
    values = {
        "model": trained.name,
        "weights": str(trained.weights_path),
        "inference": task.inference.to_dict(),
        "classes": classes,
        "images": [answer.to_dict() for answer in answers],
        "skipped": list(skipped),
    }
    write_json(config.output / AREAS, values)
