"""What keeps weights from fitting a model, listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_SHOWN = 8


@dataclass(frozen=True)
class Misfits:
    """Names that do not agree; false where everything fits."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mis_shaped: tuple[str, ...]  # each with both shapes
    unusable: tuple[str, ...] = ()  # each with what its values are

    def __bool__(self) -> bool:
        """Whether anything does not fit."""
        return bool(self.missing or self.unexpected or self.mis_shaped or self.unusable)

    def __str__(self) -> str:
        """One line, long lists cut."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mis_shaped),
            ("of another kind", self.unusable),
        )
        return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds if names)


def find_misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Misfits:
    """Compare names and shapes of translated weights with a model's own state dict."""
    shapes = {name: (tuple(given[name].shape), tuple(own[name].shape)) for name in own if name in given}
    return Misfits(
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in given if name not in own),
        mis_shaped=tuple(f"{name} (given {a}, want {b})" for name, (a, b) in shapes.items() if a != b),
        unusable=tuple(
            f"{name} ({reason})" for name in shapes if (reason := _unusable(given[name], own[name])) is not None
        ),
    )


def _unusable(given: Tensor, own: Tensor) -> str | None:
    """Why a tensor's values cannot be another's, or None. Floating-point ones are rounded to each other."""
    if given.is_meta and not own.is_meta:
        return "on the meta device, without values"
    if given.layout != torch.strided or given.is_quantized:
        return "sparse or quantised; make it dense first"
    if given.is_complex() or (own.is_floating_point() and not given.is_floating_point()):
        return f"given {given.dtype}, want {own.dtype}"
    return None


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
