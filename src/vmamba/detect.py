"""What `vmamba detect` does: the objects in images, as pictures with boxes, masks and scores, JSON and COCO results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.one_by_one import check_results_folder, one_by_one, tell, write_png
from vmamba.evaluate.predict import find_images
from vmamba.output import create_folder, write_json
from vmamba.tasks.detection.prediction import DetectedImage
from vmamba.tasks.detection.task import SHOWN, Detection
from vmamba.tasks.trained import Trained, open_trained

if TYPE_CHECKING:
    from rich.console import Console

DETECTIONS, RESULTS = "detections.json", "coco_results.json"


@dataclass(frozen=True)
class DetectConfig:
    """Which images to find objects in, with what, and where the results go.

    Attributes:
        paths: Image files, and folders that are searched through and through.
        weights: Run folder (its best weights), a weight file that a run wrote, or a model's name for its released
            weights.
        output: Folder for a picture an image, detections.json and coco_results.json.
        threshold: Score from which on an object is drawn, and listed in detections.json; by default 0.5.
            coco_results.json has all, since average precision counts them.
        resize: Longest and shortest edge that images are resized to fit; by default as the weights say.
        overwrite: Whether files in the output folder may be replaced.
        unreadable: Whether an image that cannot be decoded stops the command, or is left out and counted.
        device: auto, cpu, cuda, mps or xpu.
    """

    paths: tuple[Path, ...]
    weights: Path
    output: Path = Path("detected")
    threshold: float = SHOWN
    resize: tuple[int, int] | None = None
    overwrite: bool = False
    unreadable: Literal["stop", "skip"] = "stop"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("no image or folder given")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: a score, want 0 to 1")


def detect_files(config: DetectConfig, console: Console | None = None) -> list[DetectedImage]:
    """Find the objects in images one by one, in the order given, those of a folder sorted, and write what came of each.

    For ``photo.jpg`` that is ``photo_detected.png``. The two JSON files come last, when all images are done. An image's
    number in the COCO results is that in its file's name, as in COCO's own files (``000000000139.jpg``), or else the
    name without its ending.

    Returns:
        an answer for each image that could be read, its objects of a score of ``threshold`` or more.

    Raises:
        CheckpointError: the weights cannot be used. ConfigError: they do not detect, or an option makes no sense.
        DataError: there is no image, or one cannot be read; names it.
        OutputError: the folder is not empty, or cannot be written; noticed before anything is computed.
    """
    check_results_folder(config.output, config.overwrite)
    files = find_images(config.paths)  # before weights are downloaded
    trained, device = open_trained(config.weights, config.device)
    task = trained.task
    if not isinstance(task, Detection):
        raise ConfigError(f"{config.weights} was trained for {task.name}, which `vmamba predict` answers")
    if config.resize is not None:
        task = task.configured({"resize": config.resize})
    trained.model.to(device)
    create_folder(config.output)
    answers: list[DetectedImage] = []
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    for asked in one_by_one(task, trained.model, files, config.unreadable, device):
        if asked.fault is not None:
            skipped.append(asked.fault)
            continue
        stem = asked.path.stem
        whole = DetectedImage.of(asked.path, asked.output.to("cpu"), task.categories)
        results += whole.coco_results(int(stem) if stem.isdecimal() else stem)
        answers.append(whole.above(config.threshold))
        write_png(config.output / f"{asked.name}_detected.png", answers[-1].picture(None))
    if not answers:
        raise DataError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")
    _finish(config, trained, task, answers, results, skipped)
    written = f"wrote {len(answers)} picture(s), {DETECTIONS} and {RESULTS} to {config.output}"
    tell(console, task, answers, skipped, written)
    return answers


def _finish(
    config: DetectConfig,
    trained: Trained,
    task: Detection,
    answers: Sequence[DetectedImage],
    results: Sequence[dict[str, Any]],
    skipped: Sequence[str],
) -> None:
    values = {
        "model": trained.name,
        "weights": str(trained.weights_path),
        "inference": task.inference.to_dict(),
        "threshold": config.threshold,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(task.categories.ids, task.categories.names, strict=True)
        ],
        "images": [answer.to_dict() for answer in answers],
        "skipped": list(skipped),
    }
    write_json(config.output / RESULTS, list(results))
    write_json(config.output / DETECTIONS, values)
