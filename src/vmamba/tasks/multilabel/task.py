"""Several labels for each image as a `vmamba.tasks.protocol.Task`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from vmamba.data import DataConfig, LabelledImages, Preprocessing, Splits, load_splits
from vmamba.data.types import Targets
from vmamba.errors import ConfigError
from vmamba.tasks.class_weights import OPTION, class_weights
from vmamba.tasks.classification.labels import distinct_names
from vmamba.tasks.labelled import ImageLabels
from vmamba.tasks.multilabel.objective import BinaryCrossEntropy
from vmamba.tasks.multilabel.prediction import Labels, label_predictions
from vmamba.tasks.multilabel.scores import THRESHOLD, LabelMeter, LabelScores
from vmamba.tasks.protocol import AnswerSettings, Metric, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image
    from rich.console import Console

LOSS = Metric("loss", "loss", "Binary cross-entropy (nats)")
MAP = Metric("map", "mAP", "Mean average precision", digits=2, percent=True, larger_is_better=True)
AUROC = Metric("auroc", "AUROC", "AUROC", larger_is_better=True)
F1 = Metric("f1", "F1", "Macro F1", digits=2, percent=True, larger_is_better=True)


@dataclass(frozen=True)
class MultiLabel(ImageLabels):
    """Any number of ``classes`` for each image; labels in a batch are ``(b, classes)`` of 0 and 1.

    Attributes:
        thresholds: from which probability on each class holds: those with the highest F1 on the validation images,
            which weight files keep; empty before anything was measured, which means 0.5.
    """

    thresholds: tuple[float, ...] = ()

    name: ClassVar[str] = "multilabel"
    running: ClassVar[tuple[Metric, ...]] = (LOSS,)
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, MAP, AUROC, F1)
    headline: ClassVar[str] = MAP.name
    described_by: ClassVar[tuple[str, ...]] = ("classes", "preprocessing")

    @classmethod
    def load(cls, data: DataConfig, options: Mapping[str, Any]) -> tuple[MultiLabel, Splits]:
        """The data set's classes, and its images; where each has one label, the others do not hold."""
        if set(options) - {OPTION}:
            raise ConfigError(f"task_options={dict(options)}: multilabel has {OPTION} alone")
        splits = load_splits(data)
        weights = class_weights(options.get(OPTION), splits.classes, _several(splits.train, len(splits.classes)))
        return cls(splits.classes, splits.preprocessing, class_weights=weights), _all_several(splits)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> MultiLabel:
        """Undo `metadata`."""
        classes = tuple(json.loads(metadata["classes"]))
        thresholds = tuple(float(value) for value in json.loads(metadata.get("thresholds", "[]")))
        if len(thresholds) not in (0, len(classes)):
            raise ValueError(f"{len(thresholds)} thresholds for {len(classes)} classes")
        return cls(classes, Preprocessing.from_dict(json.loads(metadata["preprocessing"])), thresholds=thresholds)

    def metadata(self, model: nn.Module) -> dict[str, str]:
        """The model's configuration, the classes, the preprocessing, and thresholds if there are; each as JSON."""
        known = {"thresholds": json.dumps(list(self.thresholds))} if self.thresholds else {}
        return {**super().metadata(model), **known}

    @property
    def summary(self) -> str:
        """How many labels."""
        return f"{len(self.classes)} labels"

    @property
    def _thresholds(self) -> tuple[float, ...]:
        return self.thresholds or (THRESHOLD,) * len(self.classes)

    def reload(self, data: DataConfig, weights: Path) -> Splits:
        """Images with the model's channels, labelled in the order of its logits."""
        return _all_several(super().reload(data, weights))

    def objective(self, settings: Settings) -> BinaryCrossEntropy:
        """Binary cross-entropy."""
        return BinaryCrossEntropy(settings, self.class_weights)

    def meter(self) -> LabelMeter:
        """Ranks the images for each label."""
        return LabelMeter(distinct_names(self.classes), self._thresholds)

    def pictures(self, measurement: LabelScores, title: str) -> dict[str, Figure]:
        """Each label's average precision."""
        from vmamba.tasks.multilabel.report import precision_figure

        return {"average_precision": precision_figure(measurement, title)}

    def answers(self, outputs: Tensor, paths: Sequence[Path], settings: AnswerSettings) -> list[Labels]:
        """The labels of each image, and its likeliest classes."""
        return label_predictions(outputs, paths, self.classes, self._thresholds, settings)

    def recall(self, values: Mapping[str, Any]) -> Labels:
        """Undo `Labels.to_dict`."""
        return Labels.from_dict(values)

    def print_answers(self, answers: Sequence[Labels], console: Console) -> None:
        """Bars for each image's likeliest classes, then how many labels hold."""
        from vmamba.tasks.classification.report import report

        report(answers, console)
        count = sum(len(answer.labels) for answer in answers)
        console.print(f"{count:,} labels hold for {len(answers):,} image(s)", markup=False)

    def sheet(self, answers: Sequence[Labels], total: int, title: str) -> Figure:
        """The contact sheet."""
        from vmamba.tasks.classification.contact_sheet import contact_sheet

        return contact_sheet(answers, total, title)


class OneOfSeveral:
    """Another set's images, whose one label is one of ``classes`` that may hold."""

    def __init__(self, images: LabelledImages, classes: int) -> None:
        self.images = images
        self.targets: Targets = np.eye(classes, dtype=np.int8)[images.targets]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self.images[index][0], self.targets[index]

    def name(self, index: int) -> str:
        """The other set's."""
        return self.images.name(index)

    def fingerprint(self) -> str:
        """The other set's."""
        return self.images.fingerprint()


def _several(images: LabelledImages, classes: int) -> Targets:
    return images.targets if images.targets.ndim > 1 else OneOfSeveral(images, classes).targets


def _all_several(splits: Splits) -> Splits:
    if splits.train.targets.ndim > 1:
        return splits
    count = len(splits.classes)
    test = None if splits.test is None else OneOfSeveral(splits.test, count)
    return replace(splits, train=OneOfSeveral(splits.train, count), val=OneOfSeveral(splits.val, count), test=test)
