"""What a model says about one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        path: the file.
        classes: the likeliest classes, best first.
        probabilities: theirs, by softmax; not calibrated.
        truth: the true class where it is known.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    truth: str | None = None

    @property
    def right(self) -> bool | None:
        """Whether the likeliest class is the true one; None where that is not known."""
        return None if self.truth is None else self.truth == self.classes[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        top = [{"class": c, "probability": round(p, 6)} for c, p in zip(self.classes, self.probabilities, strict=True)]
        return {"path": str(self.path), "top": top, **({} if self.truth is None else {"truth": self.truth})}


def right_of(predictions: Sequence[Prediction]) -> str:
    """Such as ``"19 of 20 right"``, of those whose truth is known; empty if none is."""
    known = [prediction.right for prediction in predictions if prediction.right is not None]
    return f"{sum(known)} of {len(known)} right" if known else ""
