"""What calls of `vmamba.evaluate` and `vmamba.predict` do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vmamba.data import DataConfig
from vmamba.evaluate.measure import EvaluateConfig, Evaluation, evaluate
from vmamba.evaluate.predict import PredictConfig
from vmamba.evaluate.predict import predict as predict_files
from vmamba.tasks.keywords import as_data, from_keywords
from vmamba.tasks.run_files import trained_on
from vmamba.tasks.trained import own_images_of

if TYPE_CHECKING:
    from rich.console import Console

    from vmamba.tasks.protocol import Answer

#: Size and channels are what the weights were trained with.
_OF_THE_WEIGHTS = ("image_size", "in_chans")


def evaluate_by_keywords(weights: Any, data: Any, console: Console | None, fields: Mapping[str, Any]) -> Evaluation:
    """See `vmamba.evaluate`. A mapping changes some fields of the run's own images, as the command's options do."""
    groups: dict[str, Any] = {}
    if isinstance(data, DataConfig):
        groups["data"] = data
    elif data is not None:
        own = trained_on(Path(weights)) if isinstance(data, Mapping) and Path(weights).exists() else None
        if own is not None:
            kept = {name: value for name, value in asdict(own).items() if name not in _OF_THE_WEIGHTS}
            if data.get("dataset", own.dataset) != own.dataset:
                del kept["data_dir"]  # another data set does not lie where the run's does
            data = {**kept, **data}
        if isinstance(data, Mapping):
            unnamed = data.get("data_dir") is not None and "dataset" not in data
        else:
            unnamed = isinstance(data, (str, os.PathLike)) and Path(data).is_dir()
        own_images = own_images_of(Path(weights)) if unnamed else "folder"
        groups["data"] = as_data(data, "vmamba.evaluate", own_images=own_images)
    return evaluate(from_keywords(EvaluateConfig, {"weights": weights, **fields, **groups}, "vmamba.evaluate"), console)


def predict(paths: Any, weights: Any, *, console: Console | None = None, **fields: Any) -> list[Answer]:
    """Ask trained weights about images, as `vmamba predict` does; files are written only where ``output`` is given.

    Args:
        paths: image files and folders, or one of them.
        weights: a run's folder, a weight file, an exported file, or a model's name for its released weights.
        console: a `rich.console.Console` for the answers; silent without.
        fields: any other field of `vmamba.evaluate.predict.PredictConfig`, such as ``topk`` or ``batch_size``.

    Returns:
        One answer for each image, in order; for classification a
        `vmamba.tasks.classification.prediction.Prediction`.

    Raises:
        ConfigError: a field that there is not, or a value that cannot be used.
        VMambaError: as `vmamba.evaluate.predict.predict`.
    """
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, os.PathLike))
    values = {"paths": [os.fspath(path) for path in (paths if several else [paths])], "weights": weights, **fields}
    if "output" in fields:
        return predict_files(from_keywords(PredictConfig, values, "vmamba.predict"), console)
    with TemporaryDirectory() as nowhere:
        values = {"sheet": 0, **values, "output": nowhere}
        return predict_files(from_keywords(PredictConfig, values, "vmamba.predict"), console)
