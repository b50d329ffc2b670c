"""Weight files: read without running their code, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import CheckpointError, OutputError

#: Where a training checkpoint keeps its weights, in the order they are looked for.
WEIGHT_KEYS = ("model", "state_dict", "model_ema")


@dataclass(frozen=True)
class WeightFile:
    """A weight file's content."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


class _InertNode(dict):  # type: ignore[type-arg]
    """Stands in for yacs' configuration class, which upstream's training checkpoints carry; it only holds values."""


def read_weights(path: str | Path, key: str | None = None) -> WeightFile:
    """Read a ``.safetensors`` file or a PyTorch checkpoint (tensors and plain values only; code in it never runs).

    Args:
        path: the file.
        key: the entry of a training checkpoint to take; by default ``"model"``, then ``"state_dict"``, then
            ``"model_ema"``, or the file itself where it is a plain state dict.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, carries code, or has no such entry.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a weight file")
    if not path.exists():
        raise CheckpointError(f"weight file {path} does not exist")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickled(path)
    return WeightFile(pick_state_dict(content, key, source=str(path)))


def pick_state_dict(content: object, key: str | None = None, source: str = "the checkpoint") -> dict[str, Tensor]:
    """Take the weights out of a loaded checkpoint: its entry ``key``, or the usual ones, or the mapping itself.

    Raises:
        CheckpointError: no weights there; lists the entries that are.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
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


def _read_pickled(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([(_InertNode, "yacs.config.CfgNode")]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error) or "class" in str(error):
            name = _refused_name(str(error))
            raise CheckpointError(
                f"{path} carries code ({name}) and is refused: loading it could run anything. "
                f"Re-save its state_dict alone, with tensors and plain values only"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: it is damaged or cut short") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a readable PyTorch checkpoint ({reason}); it may be damaged or cut short: get it again"
        ) from error


def _refused_name(message: str) -> str:
    """The class or function that torch's unpickler refused, as far as its message tells."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "GLOBAL "):
        if marker in message:
            return message.split(marker, 1)[1].split()[0].strip("`'\".,")
    return "an object of a class of its own"


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a ``.safetensors`` file atomically: either the whole new file is there afterwards, or the old one still.

    Args:
        path: the file.
        state_dict: tensors on any device, in any layout.
        metadata: text entries for the file's header.

    Raises:
        OutputError: the place cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state_dict.items()}
    content = save(tensors, metadata=dict(metadata or {}))
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the result into place.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
