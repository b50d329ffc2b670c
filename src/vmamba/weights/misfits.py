"""What keeps weights from fitting a model, listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vmamba.errors import CheckpointError

_SHOWN = 8
#: The classifier's last layer.
HEAD = ("classifier.head.weight", "classifier.head.bias")
_DENSE = ("outnorm", "decode_head.", "auxiliary_head.", "neck.", "rpn_head.", "roi_head.")


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


def refuse_misfits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` that lists the misfits, if there are any, and says the mend."""
    if misfits := find_misfits(given, own):
        raise CheckpointError(f"{source} does not fit this model ({misfits}); {_mend(misfits, given, own)}")


def _mend(misfits: Misfits, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    names = {name.split()[0] for name in (*misfits.missing, *misfits.unexpected, *misfits.mis_shaped)}
    if misfits.unusable and not names:
        return "weights must be dense floating-point numbers where the model has such"
    if names and names <= set(HEAD):
        classes, there = (weights[HEAD[0]].shape[0] if HEAD[0] in weights else 0 for weights in (own, given))
        return (
            f"only the head differs, {there} classes there and {classes} here: create_model(…, pretrained=…, "
            f"num_classes={classes}) takes the rest and leaves the model's own head"
        )
    if any(name.startswith(_DENSE) for name in misfits.unexpected):
        return "they look like a segmenter's or detector's: Backbone_VSSM(pretrained=…) takes the backbone out of them"
    return "build the model that the weights belong to"


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
