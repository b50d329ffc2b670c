"""Commands that train models and use what was trained: demo, train, eval, predict, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmamba.cli.frame import Command, add_paths, build, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


def _demo_options(parser: CommandParser) -> None:
    from vmamba.demo import DemoConfig

    parser.add_group(DemoConfig)


def _demo(values: Namespace) -> int:
    from vmamba.demo import DemoConfig, demo

    demo(build(DemoConfig, values), console())
    return 0


def _train_options(parser: CommandParser) -> None:
    from vmamba.train.settings.config import TrainConfig

    parser.add_group(TrainConfig)


def _train_given(given: Namespace) -> None:
    """Images of a run to go on with, or of a recipe, are of its data set where none is named."""
    from vmamba.tasks.registry import task_type
    from vmamba.tasks.run_files import trained_on
    from vmamba.train.settings.recipe_files import recipe_dataset

    if "data" not in given or "data.dataset" in given:
        return
    if given.get("resume") is not None:
        own = trained_on(given.resume)
        dataset = None if own is None else own.dataset
    else:
        dataset = None if given.get("recipe") is None else recipe_dataset(given.recipe)
        if dataset is None and given.get("data.data_dir") is not None and given.get("task") is not None:
            dataset = task_type(given.task).own_images
    if dataset is not None:
        given["data.dataset"] = dataset


def _train(values: Namespace) -> int:
    from vmamba.train.run import train
    from vmamba.train.settings.config import TrainConfig

    train(build(TrainConfig, values), console())
    return 0


def _train_explain(values: Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    from vmamba.train.settings.config import TrainConfig
    from vmamba.train.settings.origins import explained

    return explained(build(TrainConfig, values))


def _eval_options(parser: CommandParser) -> None:
    from vmamba.data import DataConfig
    from vmamba.evaluate.measure import EvaluateConfig

    add_paths(parser, "weights", "RUN_OR_FILE", "Run folder, weight file, exported file, or a model's name.")
    parser.add_group(EvaluateConfig, skip={"weights", "data"})
    # Size and channels are what the weights were trained with.
    parser.add_group(DataConfig, "data", skip={"image_size", "in_chans", "full_depth", "mean", "std"})


def _eval_defaults(values: Namespace, given: Namespace) -> dict[str, Any]:
    """The run's own images, for what the user did not give. Another data set does not lie where the run's does."""
    from vmamba.tasks.released import is_released_name
    from vmamba.tasks.run_files import trained_on, unknown_images
    from vmamba.tasks.trained import open_trained, own_images_of

    own = trained_on(values.weights) if values.weights.exists() else None
    if own is not None:
        kept = {f"data.{name}": value for name, value in vars(own).items() if name in vars(values.data)}
        if given.get("data.dataset", own.dataset) != own.dataset:
            del kept["data.data_dir"], kept["data.labels"]
        return kept
    if "data" not in given:
        if not is_released_name(values.weights):
            open_trained(values.weights, "auto")  # a file that is missing or broken is the worse news
        raise unknown_images(values.weights)
    # A directory alone means the task's own layout, such as a tree of class folders.
    if given.get("data.data_dir") is None:
        return {}
    return {"data.dataset": own_images_of(values.weights)}


def _eval(values: Namespace) -> int:
    from vmamba.evaluate.measure import EvaluateConfig, evaluate

    evaluate(build(EvaluateConfig, values), console())
    return 0


def _predict_options(parser: CommandParser) -> None:
    from vmamba.evaluate.predict import PredictConfig

    add_paths(
        parser, "paths", "IMAGE_OR_FOLDER", "Image files, and folders that are searched through and through.", "+"
    )
    parser.add_group(PredictConfig, skip={"paths"})


def _predict(values: Namespace) -> int:
    from vmamba.evaluate.predict import PredictConfig, predict

    values.paths = tuple(values.paths)
    predict(build(PredictConfig, values), console())
    return 0


def _detect_options(parser: CommandParser) -> None:
    from vmamba.detect import DetectConfig

    add_paths(
        parser, "paths", "IMAGE_OR_FOLDER", "Image files, and folders that are searched through and through.", "+"
    )
    parser.add_group(DetectConfig, skip={"paths"})


def _detect(values: Namespace) -> int:
    from vmamba.detect import DetectConfig, detect_files

    values.paths = tuple(values.paths)
    detect_files(build(DetectConfig, values), console())
    return 0


def _segment_options(parser: CommandParser) -> None:
    from vmamba.segment import SegmentConfig

    add_paths(
        parser, "paths", "IMAGE_OR_FOLDER", "Image files, and folders that are searched through and through.", "+"
    )
    parser.add_group(SegmentConfig, skip={"paths"})


def _segment(values: Namespace) -> int:
    from vmamba.segment import SegmentConfig, segment_files

    values.paths = tuple(values.paths)
    segment_files(build(SegmentConfig, values), console())
    return 0


def _export_options(parser: CommandParser) -> None:
    from vmamba.export.exporter import ExportConfig

    parser.add_argument("source", metavar="RUN_OR_NAME", help="Run folder, weight file, or a model's name.")
    axes = "Axes of the images that may have any size: batch, height, width; once or more, or with commas. The others "
    axes += "have the size of the model's images, and batch 1."
    parser.add_argument("--dynamic", type=str, action="append", metavar="AXIS", help=axes)
    parser.add_group(ExportConfig, skip={"source", "dynamic"})


def _export(values: Namespace) -> int:
    from vmamba.export.exporter import ExportConfig, export

    values.dynamic = ",".join(values.dynamic or ())
    export(build(ExportConfig, values), console())
    return 0


DEMO = Command("Train a small model on digits or shapes, measure it, predict; a few minutes.", _demo_options, _demo)
TRAIN = Command("Train a model.", _train_options, _train, given=_train_given, explain=_train_explain)
EVAL = Command("Measure trained weights on labelled images.", _eval_options, _eval, _eval_defaults)
PREDICT = Command("Classify image files with trained weights.", _predict_options, _predict)
SEGMENT = Command("Give every pixel of image files a class.", _segment_options, _segment)
DETECT = Command("Find the objects in image files: boxes, masks and scores.", _detect_options, _detect)
EXPORT = Command("Export a model to ONNX, OpenVINO or PyTorch files.", _export_options, _export, config_file=False)
