"""How well several labels an image are told: the `Meter` and `Measurement` of the task, figures by torchmetrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.data.types import NO_LABEL
from vmamba.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

#: From here on a label holds where nothing else is said.
THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelScore:
    """One label's row.

    Attributes:
        name: the class.
        average_precision: area under precision over recall; None where no image, or every one, has the label.
        auroc: chance that an image with the label is ranked above one without; None as before.
        f1: at ``threshold``; 0 where there is neither a right answer nor a wrong one.
        threshold: from which probability on the label was taken to hold.
        best_threshold: the one that would have given the highest F1 on these images.
        images: how many have the label.
    """

    name: str
    average_precision: float | None
    auroc: float | None
    f1: float
    threshold: float
    best_threshold: float
    images: int


@dataclass(frozen=True)
class LabelScores:
    """Results on a set of images with several labels each.

    Attributes:
        images: how many were seen.
        loss: mean binary cross-entropy over labels, in nats.
        labels: one row a class, in the order of the logits.
    """

    images: int
    loss: float
    labels: tuple[LabelScore, ...]

    @property
    def count(self) -> int:
        """How many images."""
        return self.images

    @property
    def figures(self) -> dict[str, float]:
        """Means over labels; of mAP and AUROC over those that some images have and some have not."""
        return {
            "loss": self.loss,
            "map": _mean([row.average_precision for row in self.labels]),
            "auroc": _mean([row.auroc for row in self.labels]),
            "f1": _mean([row.f1 for row in self.labels]),
        }

    def summary(self) -> str:
        """The figures."""
        f = self.figures
        return f"mAP {f['map']:.2%}   AUROC {f['auroc']:.4f}   macro-F1 {f['f1']:.2%}   loss {f['loss']:.4f}"

    def tables(self, part: str) -> Iterable[RenderableType]:
        """A row for each label."""
        from vmamba.tasks.multilabel.report import score_table

        yield score_table(self, part)
        yield ""

    def to_dict(self) -> dict[str, Any]:
        """Every field, and the figures."""
        return {**asdict(self), **self.figures}

    def metadata(self) -> dict[str, str]:
        """The thresholds that serve these images best, for the weight file."""
        return {"thresholds": json.dumps([round(row.best_threshold, 6) for row in self.labels])}


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


class LabelMeter:
    """Keeps the logits and labels of all images, since a ranking needs them together: 8 bytes an image and label.

    Args:
        classes: names.
        thresholds: from which probability on each holds.
    """

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float]) -> None:
        self._names = tuple(classes)
        self._thresholds = torch.tensor(thresholds)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def observe(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(b, classes)`` and labels ``(b, classes)`` of 0 and 1."""
        return outputs, batch[1]

    def update(self, observation: tuple[Tensor, Tensor]) -> None:
        """Keep one batch, as `observe` gives it."""
        logits, labels = (part.detach().cpu() for part in observation)
        seen = labels[:, 0] != NO_LABEL  # the others could not be read
        self._seen.append((logits[seen].float(), labels[seen].to(torch.int32)))

    def measurement(self) -> LabelScores:
        """Everything kept so far; needs one image at least.

        Raises:
            DataError: there is none, since none could be read.
        """
        from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

        logits, labels = (torch.cat(part) for part in zip(*self._seen, strict=True))
        if not len(logits):
            raise DataError("none of the images can be read, so there is nothing to measure")
        shares, truth = logits.sigmoid(), labels.long()
        have = truth.sum(0)
        # What cannot be ranked is left out: torchmetrics would warn of it and count it as 0.
        ranked = ((have > 0) & (have < len(truth))).nonzero()[:, 0]
        precision: dict[int, float] = {}
        auroc: dict[int, float] = {}
        if len(ranked):
            some = logits[:, ranked].double().sigmoid()  # in float32 those near 1 would be equal
            for place, metric in ((precision, multilabel_average_precision), (auroc, multilabel_auroc)):
                values = metric(some, truth[:, ranked], num_labels=len(ranked), average=None)
                place.update(zip(ranked.tolist(), values.reshape(-1).tolist(), strict=True))
        taken = shares >= self._thresholds
        hits = (taken & (truth == 1)).sum(0)
        # F1 = 2PR/(P + R), in counts: no division by zero of its own.
        f1 = 2 * hits / (taken.sum(0) + have).clamp(min=1)
        rows = [
            LabelScore(
                name,
                precision.get(i),
                auroc.get(i),
                float(f1[i]),
                float(self._thresholds[i]),
                best_threshold(shares[:, i], truth[:, i]),
                int(have[i]),
            )
            for i, name in enumerate(self._names)
        ]
        loss = F.binary_cross_entropy_with_logits(logits.double(), truth.double())
        return LabelScores(len(logits), float(loss), tuple(rows))


def best_threshold(shares: Tensor, truth: Tensor) -> float:
    """The threshold with the highest F1, half-way between two neighbouring probabilities; the highest of equals.

    Args:
        shares: probabilities ``(n,)``.
        truth: 0 or 1 ``(n,)``.

    Returns:
        `THRESHOLD` where no image has the label.
    """
    have = int(truth.sum())
    if not have:
        return THRESHOLD
    order = shares.argsort(descending=True)
    ranked, hits = shares[order].double(), truth[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(order) + 1) + have)
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # one cannot cut between equals
    last = int(f1.argmax())
    below = float(ranked[last + 1]) if last + 1 < len(ranked) else 0.0
    return (float(ranked[last]) + below) / 2
