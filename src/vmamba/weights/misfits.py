"""What keeps weights from fitting a model, listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vmamba.errors import CheckpointError

_SHOWN = 8


@dataclass(frozen=True)
class Misfits:
    """Names that do not agree; false where everything fits."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mis_shaped: tuple[str, ...]  # each with both shapes

    def __bool__(self) -> bool:
        """Whether anything does not fit."""
        return bool(self.missing or self.unexpected or self.mis_shaped)

    def __str__(self) -> str:
        """One line, long lists cut."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mis_shaped),
        )
        return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds if names)


def find_misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Misfits:
    """Compare names and shapes of translated weights with a model's own state dict."""
    shapes = {name: (tuple(given[name].shape), tuple(own[name].shape)) for name in own if name in given}
    return Misfits(
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in given if name not in own),
        mis_shaped=tuple(f"{name} (given {a}, want {b})" for name, (a, b) in shapes.items() if a != b),
    )


def refuse_misfits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` that lists the misfits, if there are any."""
    if misfits := find_misfits(given, own):
        raise CheckpointError(
            f"{source} does not fit this model ({misfits}); build the model that the weights belong to"
        )


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
