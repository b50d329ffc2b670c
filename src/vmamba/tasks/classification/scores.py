"""What a classifier got right: counted batch by batch, read out once. The `Meter` and `Measurement` of the task."""

from __future__ import annotations

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


@dataclass(frozen=True)
class ClassScore:
    """One class's row. Ratios are between 0 and 1; one whose denominator is zero is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Scores:
    """A classifier's results on a labelled set.

    Attributes:
        images: how many were seen.
        top1: share whose highest logit is the label's.
        top5: share whose label is among the five highest logits; 1 where there are at most five classes.
        loss: mean cross-entropy, in nats.
        classes: one row a class, in the order of the logits.
        confusion: counts; ``confusion[i][j]`` images of class ``i`` were taken for class ``j``.
    """

    images: int
    top1: float
    top5: float
    loss: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many images."""
        return self.images

    @property
    def figures(self) -> dict[str, float]:
        """What epochs are chosen by."""
        return {"loss": self.loss, "accuracy": self.top1, "macro_f1": self.macro_f1}

    @property
    def macro_f1(self) -> float:
        """The mean of the F1 of all classes that occur, among labels or among answers."""
        seen = [row.f1 for row, column in zip(self.classes, zip(*self.confusion, strict=True), strict=True)
                if row.images or any(column)]  # fmt: skip
        return sum(seen) / len(seen)

    def metadata(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def summary(self) -> str:
        """The figures over all classes."""
        return f"top-1 {self.top1:.2%}   top-5 {self.top5:.2%}   macro-F1 {self.macro_f1:.2%}   loss {self.loss:.4f}"

    def tables(self, part: str) -> Iterable[RenderableType]:
        """A row for each class, and the commonest confusions."""
        from vmamba.tasks.classification.report import score_tables

        return score_tables(self, part)

    def to_dict(self) -> dict[str, Any]:
        """Every field, and the macro-F1."""
        return asdict(self) | {"macro_f1": self.macro_f1}


class ScoreCounter:
    """Counts what `Scores` reports; holds one matrix of counts, however many images pass."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._names = tuple(classes)
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
        self._in_top5 = 0
        self._loss = 0.0

    def observe(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(b, classes)`` and class indices ``(b,)``."""
        return outputs, batch[1]

    def update(self, observation: tuple[Tensor, Tensor]) -> None:
        """Count one batch, as `observe` gives it."""
        logits, labels = (part.detach().cpu() for part in observation)
        seen = labels != NO_LABEL  # the others could not be read
        logits, labels = logits[seen].float(), labels[seen]
        count = len(self._names)
        self._loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        top = logits.topk(min(5, count), dim=1).indices
        self._in_top5 += int((top == labels[:, None]).sum())
        pairs = labels * count + top[:, 0]
        self._confusion += torch.bincount(pairs, minlength=count * count).view(count, count)

    def measurement(self) -> Scores:
        """Everything counted so far; needs one image at least.

        Raises:
            DataError: there is none, since none could be read.
        """
        confusion = self._confusion
        images = int(confusion.sum())
        if not images:
            raise DataError("none of the images can be read, so there is nothing to measure")
        hits = confusion.diagonal()
        rows = []
        for name, hit, taken, actual in zip(
            self._names, hits.tolist(), confusion.sum(0).tolist(), confusion.sum(1).tolist(), strict=True
        ):
            # F1 = 2PR/(P + R), in counts: no division by zero of its own.
            f1 = 2 * hit / (taken + actual) if taken + actual else 0.0
            rows.append(ClassScore(name, hit / taken if taken else 0.0, hit / actual if actual else 0.0, f1, actual))
        return Scores(
            images=images,
            top1=int(hits.sum()) / images,
            top5=self._in_top5 / images,
            loss=self._loss / images,
            classes=tuple(rows),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
        )
