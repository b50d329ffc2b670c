"""Classification as a `vmamba.tasks.protocol.Task`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from vmamba.data import DataConfig, Preprocessing, Splits, load_splits
from vmamba.errors import ConfigError, DataError
from vmamba.tasks.class_weights import OPTION, class_weights
from vmamba.tasks.classification.labels import distinct_names
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.tasks.classification.prediction import Prediction, predictions
from vmamba.tasks.classification.scores import ScoreCounter, Scores
from vmamba.tasks.labelled import ImageLabels
from vmamba.tasks.protocol import AnswerSettings, Metric, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

LOSS = Metric("loss", "loss", "Loss (nats)")
ACCURACY = Metric("accuracy", "acc", "Accuracy", digits=2, percent=True, larger_is_better=True)
MACRO_F1 = Metric("macro_f1", "F1", "Macro F1", digits=2, percent=True, larger_is_better=True, since_later=True)


@dataclass(frozen=True)
class Classification(ImageLabels):
    """One of ``classes`` for each image; labels in a batch are class indices ``(b,)``."""

    name: ClassVar[str] = "classification"
    running: ClassVar[tuple[Metric, ...]] = (LOSS, ACCURACY)
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, ACCURACY, MACRO_F1)
    headline: ClassVar[str] = ACCURACY.name
    described_by: ClassVar[tuple[str, ...]] = ("classes", "preprocessing")

    @classmethod
    def load(cls, data: DataConfig, options: Mapping[str, Any]) -> tuple[Classification, Splits]:
        """The data set's classes, and its images."""
        if set(options) - {OPTION}:
            raise ConfigError(f"task_options={dict(options)}: classification has {OPTION} alone")
        splits = load_splits(data)
        cls._check(splits, data)
        weights = class_weights(options.get(OPTION), splits.classes, splits.train.targets)
        return cls(splits.classes, splits.preprocessing, class_weights=weights), splits

    @staticmethod
    def _check(splits: Splits, data: DataConfig) -> None:
        if splits.train.targets.ndim > 1:
            raise DataError(f"{data.labels} gives images several labels; give task=multilabel, or one label an image")

    def reload(self, data: DataConfig, weights: Path) -> Splits:
        """Images with the model's channels, labelled in the order of its logits."""
        splits = super().reload(data, weights)
        self._check(splits, data)
        return splits

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Classification:
        """Undo `metadata`."""
        classes = tuple(json.loads(metadata["classes"]))
        ids = tuple(json.loads(metadata.get("class_ids", "[]")))
        return cls(classes, Preprocessing.from_dict(json.loads(metadata["preprocessing"])), ids)

    def objective(self, settings: Settings) -> CrossEntropy:
        """Cross-entropy."""
        return CrossEntropy(settings, len(self.classes), self.class_weights)

    def meter(self) -> ScoreCounter:
        """Counts right and wrong answers."""
        return ScoreCounter(distinct_names(self.classes, self.ids))

    def pictures(self, measurement: Scores, title: str) -> dict[str, Figure]:
        """The confusion matrix."""
        from vmamba.tasks.classification.confusion import confusion_figure

        return {"confusion": confusion_figure(measurement.confusion, distinct_names(self.classes, self.ids), title)}

    def answers(self, outputs: Tensor, paths: Sequence[Path], settings: AnswerSettings) -> list[Prediction]:
        """The likeliest classes of each image."""
        if settings.threshold is not None:
            raise ConfigError(
                f"threshold={settings.threshold}: classification answers with the likeliest class; thresholds are for "
                "models of task=multilabel"
            )
        return predictions(outputs, paths, self.classes, self.ids, settings)

    def recall(self, values: Mapping[str, Any]) -> Prediction:
        """Undo `Prediction.to_dict`."""
        return Prediction.from_dict(values)

    def print_answers(self, answers: Sequence[Prediction], console: Console) -> None:
        """Bars for each image's classes."""
        from vmamba.tasks.classification.report import report

        report(answers, console)

    def sheet(self, answers: Sequence[Prediction], total: int, title: str) -> Figure:
        """The contact sheet."""
        from vmamba.tasks.classification.contact_sheet import contact_sheet

        return contact_sheet(answers, total, title)
