"""What a model says about one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vmamba.tasks.classification.labels import class_of_folder, distinct_names
from vmamba.tasks.protocol import AnswerSettings

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        path: the file.
        classes: the likeliest classes, best first; names that no two classes share.
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`, which rounds probabilities."""
        top = values["top"]
        classes, shares = tuple(row["class"] for row in top), tuple(row["probability"] for row in top)
        more = {name: value for name, value in values.items() if name not in ("path", "top")}
        return cls(Path(values["path"]), classes, shares, **more)


def predictions(
    logits: Tensor, paths: Sequence[Path], classes: Sequence[str], ids: Sequence[str], settings: AnswerSettings
) -> list[Prediction]:
    """What ``logits (b, classes)`` say about the images at ``paths``.

    Raises:
        DataError: an image's true class is asked for, and its folder's name is that of several.
    """
    names = distinct_names(classes, ids)
    top = logits.float().softmax(dim=1).topk(min(settings.topk, len(classes)), dim=1)
    return [
        Prediction(
            path,
            tuple(names[i] for i in indices),
            tuple(probabilities),
            _truth(path, names, classes, ids) if settings.truth == "folder" else None,
        )
        for path, indices, probabilities in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _truth(path: Path, names: Sequence[str], classes: Sequence[str], ids: Sequence[str]) -> str | None:
    place = class_of_folder(path, classes, ids)
    return None if place is None else names[place]


def right_of(predictions: Sequence[Prediction]) -> str:
    """Such as ``"19 of 20 right"``, of those whose truth is known; empty if none is."""
    known = [prediction.right for prediction in predictions if prediction.right is not None]
    return f"{sum(known)} of {len(known)} right" if known else ""
