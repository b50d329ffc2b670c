"""Strict loading: every key used, none missing, and a message that lists what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from vmamba.checkpoints.files import pick_state_dict, read_weights
from vmamba.checkpoints.translate import translate_keys
from vmamba.errors import CheckpointError

_SHOWN = 8


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, key: str | None = None) -> None:
    """Load weights strictly: a file or a state dict, in this package's naming or any of upstream's.

    Args:
        model: a `VSSM` or another module with its keys. It is left untouched unless everything fits.
        weights: a ``.safetensors`` or PyTorch file, or a state dict (a whole training checkpoint too).
        key: the entry of a training checkpoint to take, see `read_weights`.

    Raises:
        CheckpointError: an unreadable file; or missing, unexpected or mis-shaped keys, which it lists.
    """
    source, state_dict = _resolve(weights, key)
    own = model.state_dict()
    translated = translate_keys(state_dict, own)
    _refuse_misfits(source, translated, own)
    model.load_state_dict(translated)


def load_backbone_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, key: str | None = None
) -> None:
    """Load a classification checkpoint into a backbone: strict, but for the classifier and the backbone's own
    ``outnorm``s.

    Raises:
        CheckpointError: as `load_weights`.
    """
    source, state_dict = _resolve(weights, key)
    own = model.state_dict()
    translated = {k: v for k, v in translate_keys(state_dict, own).items() if not k.startswith("classifier.")}
    fresh = {k: v for k, v in own.items() if k.startswith("outnorm") and k not in translated}
    _refuse_misfits(source, {**fresh, **translated}, own)
    model.load_state_dict({**fresh, **translated})


def _resolve(weights: str | Path | Mapping[str, Tensor], key: str | None) -> tuple[str, dict[str, Tensor]]:
    if isinstance(weights, Mapping):
        return "the state dict", pick_state_dict(weights, key, "the state dict")
    return str(weights), read_weights(weights, key).state_dict


def _refuse_misfits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} (given {tuple(given[name].shape)}, want {tuple(own[name].shape)})"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit this model ({'; '.join(problems)}); build the model that the weights belong to"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
