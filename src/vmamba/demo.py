"""The demonstrations: train a small model, measure it, ask it about held-out images, and say what to look at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from vmamba.data import DataConfig, Splits, load_splits
from vmamba.data.datasets.shapes import Shapes
from vmamba.detect import DETECTIONS, DetectConfig, detect_files
from vmamba.device import pick_device
from vmamba.errors import OutputError
from vmamba.evaluate.measure import EvaluateConfig, Evaluation, evaluate
from vmamba.evaluate.predict import SHEET_NAME, PredictConfig, predict
from vmamba.output import check_writable_folder, create_folder
from vmamba.segment import LEGEND, SegmentConfig, segment_files
from vmamba.tasks.protocol import Answer
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

#: Tells a folder that an earlier demonstration made, and may be made anew, from anything else.
_MARK = ".vmamba-demo"
_RUN, _HELD_OUT, _PREDICTIONS, _EVAL = "run", "held_out", "predictions", "eval.json"
_IMAGES_A_CLASS = 3
#: Held-out images that are segmented.
_SEGMENTED = 12


@dataclass(frozen=True)
class DemoConfig:
    """How to run the demonstration.

    Attributes:
        task: What is shown: classification of handwritten digits, or segmentation or detection of generated shapes.
        model: A model's name; by default the smallest one for the task.
        output: Folder for everything; one that an earlier demonstration made is made anew.
        seed: Of weights, order and augmentation.
        epochs: Passes over the training images; by default their recipe's.
        device: auto, cpu, cuda, mps or xpu.
    """

    task: Literal["classification", "segmentation", "detection"] = "classification"
    model: str | None = None
    output: Path = Path("demo")
    seed: int = 0
    epochs: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"


@dataclass(frozen=True)
class DemoResult:
    """What came out."""

    evaluation: Evaluation
    predictions: list[Answer]
    seconds: float


def demo(config: DemoConfig, console: Console | None = None) -> DemoResult:
    """Train, evaluate and predict, and end by naming the files to look at: as ``config.task`` says.

    Raises:
        OutputError: the folder cannot be written, or holds something else than an earlier demonstration.
    """
    kinds = {"classification": _classification, "segmentation": _segmentation, "detection": _detection}
    return kinds[config.task](config, console)


def _classification(config: DemoConfig, console: Console | None) -> DemoResult:
    started, output, say = time.monotonic(), config.output, _speaker(console)
    training = _begun(config, 20 if config.epochs is None else config.epochs)
    say(f"1. Train {training.model} on scikit-learn's handwritten digits", "bold")
    train(training, console)

    evaluation = _measured(config, console)

    say(f"\n3. Classify {_IMAGES_A_CLASS} test images of each digit, from PNG files", "bold")
    splits = load_splits(DataConfig())
    _write_images(splits, output / _HELD_OUT)
    predictions = predict(
        PredictConfig(
            (output / _HELD_OUT,), output / _RUN, output=output / _PREDICTIONS, truth="folder", device=config.device
        ),
        console,
    )
    seconds = time.monotonic() - started
    say(
        f"\nDone in {seconds:.0f} s: {evaluation.scores.figures['accuracy']:.1%} of the test images right. Look at",
        "bold",
    )
    run = RunFolder(output / _RUN)
    _look_at(
        say,
        (output / _PREDICTIONS / SHEET_NAME, "held-out digits with what the model takes them for"),
        (run.curves, "loss and accuracy, epoch by epoch"),
        (run.picture("confusion"), "which digits are taken for which"),
        (output / _EVAL, "every figure of the evaluation"),
        (run.path, "the run: weights, configuration, metrics"),
    )
    say("Next: your own images, in one folder for each class")
    say("  vmamba train --data.dataset folder --data.data_dir FOLDER")
    return DemoResult(evaluation, predictions, seconds)


def _segmentation(config: DemoConfig, console: Console | None) -> DemoResult:
    started, output, say = time.monotonic(), config.output, _speaker(console)
    training = _begun(config, config.epochs)
    say(f"1. Train {training.model} on generated shapes: squares, discs and triangles", "bold")
    train(training, console)

    evaluation = _measured(config, console)

    say(f"\n3. Segment {_SEGMENTED} test images, from PNG files", "bold")
    _write_shapes(output / _HELD_OUT)
    answers: list[Answer] = []
    answers += segment_files(
        SegmentConfig((output / _HELD_OUT,), output / _RUN, output / _PREDICTIONS, device=config.device), console
    )
    predict(PredictConfig((output / _HELD_OUT,), output / _RUN, output=output / _PREDICTIONS, device=config.device))
    seconds = time.monotonic() - started
    say(f"\nDone in {seconds:.0f} s: mean IoU {evaluation.scores.figures['miou']:.1%} on test images. Look at", "bold")
    run = RunFolder(output / _RUN)
    _look_at(
        say,
        (output / _PREDICTIONS / SHEET_NAME, "held-out images with the classes of their pixels"),
        (output / _PREDICTIONS / LEGEND, "which colour is which class"),
        (run.curves, "loss and mean IoU, epoch by epoch"),
        (run.picture("confusion"), "which pixels are taken for which"),
        (output / _EVAL, "every figure of the evaluation"),
        (run.path, "the run: weights, configuration, metrics"),
    )
    say("Next: your own images and masks, in images/ and masks/ of one folder")
    say("  vmamba train --task segmentation --data.data_dir FOLDER")
    return DemoResult(evaluation, answers, seconds)


def _detection(config: DemoConfig, console: Console | None) -> DemoResult:
    started, output, say = time.monotonic(), config.output, _speaker(console)
    training = _begun(config, config.epochs)
    say(f"1. Train {training.model} to find generated shapes: squares, discs and triangles", "bold")
    train(training, console)

    evaluation = _measured(config, console)

    say(f"\n3. Find the shapes in {_SEGMENTED} test images, from PNG files", "bold")
    _write_shapes(output / _HELD_OUT)
    answers: list[Answer] = []
    answers += detect_files(
        DetectConfig((output / _HELD_OUT,), output / _RUN, output / _PREDICTIONS, device=config.device), console
    )
    predict(
        PredictConfig(
            (output / _HELD_OUT,), output / _RUN, output=output / _PREDICTIONS, device=config.device, batch_size=1
        )
    )
    seconds = time.monotonic() - started
    figures = evaluation.scores.figures
    say(
        f"\nDone in {seconds:.0f} s: box AP50 {figures['box_ap50']:.1%}, mask AP50 {figures['mask_ap50']:.1%} on test "
        "images. Look at",
        "bold",
    )
    run = RunFolder(output / _RUN)
    _look_at(
        say,
        (output / _PREDICTIONS / SHEET_NAME, "held-out images with the shapes that were found"),
        (output / _PREDICTIONS / DETECTIONS, "boxes, masks and scores"),
        (run.curves, "losses and average precision, epoch by epoch"),
        (output / _EVAL, "every figure of the evaluation"),
        (run.path, "the run: weights, configuration, metrics"),
    )
    say("Next: your own images in COCO's format, annotations/ and images/ in one folder")
    say("  vmamba train --task detection --data.data_dir FOLDER")
    return DemoResult(evaluation, answers, seconds)


def _begun(config: DemoConfig, epochs: int | None, **fields: Any) -> TrainConfig:
    """The training's configuration, once the folder is ready for it."""
    if config.model is not None:
        fields["model"] = config.model
    training = TrainConfig(
        task=config.task,
        epochs=epochs,
        seed=config.seed,
        device=config.device,
        output=config.output / _RUN,
        **fields,
    ).resolved()
    pick_device(config.device)  # a mistake here must not cost what an earlier demonstration left
    _fresh_folder(config.output)
    return training


def _measured(config: DemoConfig, console: Console | None) -> Evaluation:
    """The second step: what the run's best weights do on the test images."""
    _speaker(console)("\n2. Measure it on the test images, which it has not seen", "bold")
    run, figures = config.output / _RUN, config.output / _EVAL
    return evaluate(EvaluateConfig(run, json=figures, device=config.device), console)


def _look_at(say: Callable[..., None], *files: tuple[Path, str]) -> None:
    for path, what in files:
        say(f"  {path!s:<40} {what}")


def _speaker(console: Console | None) -> Callable[..., None]:
    def say(text: str = "", style: str | None = None) -> None:
        if console is not None:
            console.print(text, style=style, soft_wrap=True, markup=False)

    return say


def _fresh_folder(path: Path) -> None:
    check_writable_folder(path)
    mark = path / _MARK
    if path.is_dir() and any(path.iterdir()):
        if not mark.is_file():
            raise OutputError(f"output folder {path} is not empty and no demonstration's; name a new one with output")
        for name in (_RUN, _HELD_OUT, _PREDICTIONS):
            shutil.rmtree(path / name, ignore_errors=True)
        (path / _EVAL).unlink(missing_ok=True)
    create_folder(path)
    try:
        mark.touch()
    except OSError as error:
        raise OutputError(f"cannot write into {path}: {error.strerror}; choose another place") from error


def _write_shapes(folder: Path) -> None:
    create_folder(folder)
    images = Shapes("test", count=_SEGMENTED)
    for index in range(_SEGMENTED):
        Image.fromarray(images[index].image).save(folder / f"{images.name(index)}.png")


def _write_images(splits: Splits, folder: Path) -> None:
    """Write the first few test images of each class to ``folder/<class>/<index>.png``."""
    assert splits.test is not None
    for label, name in enumerate(splits.classes):
        create_folder(folder / name)
        for index in [i for i, target in enumerate(splits.test.targets) if target == label][:_IMAGES_A_CLASS]:
            splits.test[index][0].save(folder / name / f"{index:03d}.png")
