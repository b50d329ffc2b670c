"""Which labels a model gives one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import ConfigError
from vmamba.tasks.classification.labels import distinct_names
from vmamba.tasks.classification.prediction import Prediction
from vmamba.tasks.protocol import AnswerSettings


@dataclass(frozen=True)
class Labels(Prediction):
    """One image's answer; ``classes`` are the likeliest with their probabilities, whether or not they hold.

    Attributes:
        labels: the classes at or above their thresholds, likeliest first.
    """

    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**super().to_dict(), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """Undo `to_dict`, which rounds probabilities."""
        return super().from_dict({**values, "labels": tuple(values["labels"])})


def label_predictions(
    logits: Tensor, paths: Sequence[Path], classes: Sequence[str], thresholds: Sequence[float], settings: AnswerSettings
) -> list[Labels]:
    """What ``logits (b, classes)`` say about the images at ``paths``, each class by itself.

    Raises:
        ConfigError: a threshold that is no probability, or folders that tell one true class each.
    """
    if settings.truth != "none":
        raise ConfigError("truth=folder: an image lies in one folder, but may have several labels; leave truth out")
    if settings.threshold is not None:
        thresholds = [settings.threshold] * len(classes)
    names = distinct_names(classes)
    shares = logits.float().cpu().sigmoid()
    holds = shares >= torch.tensor(thresholds)
    found = []
    for path, row, chosen in zip(paths, shares, holds, strict=True):
        order = row.argsort(descending=True, stable=True).tolist()
        top = order[: settings.topk]
        labels = tuple(names[i] for i in order if chosen[i])
        found.append(Labels(path, tuple(names[i] for i in top), tuple(row[top].tolist()), labels=labels))
    return found
