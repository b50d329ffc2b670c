"""Weight files: read without running their code, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import CheckpointError
from vmamba.output import write_atomically
from vmamba.weights.pickled import read_pickled

#: Where a training checkpoint keeps its weights, in the order they are looked for.
WEIGHT_KEYS = ("model", "state_dict", "model_ema")
#: What `save_weights` writes with `torch.save`.
PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class WeightFile:
    """A weight file's content. ``metadata`` is a safetensors file's header, or what a checkpoint keeps as such."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | Path, key: str | None = None) -> WeightFile:
    """Read a ``.safetensors`` file or a PyTorch checkpoint (tensors and plain values only; code in it never runs).

    Args:
        path: the file.
        key: the entry of a training checkpoint to take; by default ``"model"``, then ``"state_dict"``, then
            ``"model_ema"``, or the file itself where it is a plain state dict.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, carries code, or has no such entry.
    """
    content = read_content(path)
    if isinstance(content, WeightFile):
        if key is not None:
            raise CheckpointError(f"{path} is a safetensors file and has no entries to choose from; leave out {key!r}")
        return content
    return WeightFile(pick_state_dict(content, key, source=str(path)), _metadata(content))


def read_content(path: str | Path) -> object:
    """Read a whole file: a `WeightFile` from safetensors, else whatever the PyTorch checkpoint holds.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or carries code.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a weight file")
    if not path.exists():
        raise CheckpointError(f"weight file {path} does not exist")
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path)


def _metadata(content: object) -> dict[str, str]:
    """A checkpoint's ``metadata`` entry, and its plain numbers such as the epoch."""
    if not isinstance(content, Mapping):
        return {}
    numbers = {str(name): str(value) for name, value in content.items() if isinstance(value, (int, float))}
    own = content.get("metadata")
    if isinstance(own, Mapping):
        numbers |= {str(name): str(value) for name, value in own.items()}
    return numbers


def pick_state_dict(content: object, key: str | None = None, source: str = "the checkpoint") -> dict[str, Tensor]:
    """Take the weights out of a loaded checkpoint: its entry ``key``, or the usual ones, or the mapping itself.

    Raises:
        CheckpointError: no weights there; lists the entries that are.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
    if not content:
        raise CheckpointError(f"{source} is empty: no weights are in it")
    entries = ", ".join(map(str, list(content)[:12]))
    if key is not None and not isinstance(content.get(key), Mapping):
        raise CheckpointError(f"{source} has no weights under {key!r}; its entries: {entries}")
    names = WEIGHT_KEYS if key is None else (key,)
    weights: Mapping[Any, Any] = next((content[n] for n in names if isinstance(content.get(n), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{source} holds no state dict; its entries: {entries}")
    return {str(name): value for name, value in weights.items()}


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
            return WeightFile(tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); download or copy it again"
        ) from error


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a weight file atomically: either the whole new file is there afterwards, or the old one still.

    Args:
        path: the file. ``.pth``, ``.pt``, ``.bin`` and ``.ckpt`` are written with `torch.save`, the weights under
            ``"model"`` as upstream's loader takes them; every other name is safetensors.
        state_dict: dense tensors on any device, in any layout. Their bits are kept.
        metadata: text entries for a safetensors file's header, or for a checkpoint's ``"metadata"``.

    Raises:
        OutputError: the place cannot be written.
        CheckpointError: a tensor that such a file cannot hold, such as a sparse one.
    """
    path = Path(path)
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{name} is sparse or quantised and cannot be written to {path}; make it dense first")
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state_dict.items()}
    described = dict(metadata or {})
    if path.suffix in PICKLED_SUFFIXES:
        content: dict[str, Any] = {"model": tensors, "metadata": described} if described else {"model": tensors}
        write_atomically(path, lambda temporary: torch.save(content, temporary))
        return
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        data = save(tensors, metadata=described)
    except (ValueError, KeyError, SafetensorError) as error:  # a dtype it does not know
        raise CheckpointError(f"{path}: safetensors cannot hold these tensors ({error})") from error
    header, body = _ordered(data)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            file.write(body)

    write_atomically(path, write)


def _ordered(data: bytes) -> tuple[bytes, memoryview]:
    """A safetensors file as its header, metadata sorted, and the rest.

    safetensors writes metadata in random order; the same weights should be the same file, with the same SHA-256.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, memoryview(data)[end:]
