"""PyTorch checkpoints, read by torch's restricted unpickler alone: tensors and plain values, and no code.

Training programs put objects of their own beside the weights. Those of yacs, OpenMMLab and NumPy are read as inert
stand-ins: mappings as plain ones, everything else as a thing that holds nothing and does nothing. Any other class is
refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import CheckpointError

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before its files were ZIP archives
#: Subclasses of dict that hold a configuration. Torch's unpickler fills no other subclass of dict than this one.
_MAPPINGS = (
    "yacs.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
)
#: Packages whose other objects stand beside the weights.
_TOOLS = ("mmengine.", "mmcv.", "mmseg.", "mmdet.", "mmpretrain.", "mmcls.")
#: Arrays, such as those of a training's history and of a data set's colours. The weights are tensors.
_ARRAYS = (
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.numeric._frombuffer",
    "_codecs.encode",
)
#: What else the tools' objects are put together from.
_THEIR_PARTS = (
    "builtins.getattr",
    "__builtin__.getattr",
    "builtins.slice",
    "__builtin__.slice",
    "collections.deque",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
)
_MOST_NAMES = 64


class _Inert:
    """What stands for an object of a training program: made of anything, holds nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return "an object of a training program, not read"


def read_pickled(path: Path) -> object:
    """Whatever the checkpoint holds.

    Raises:
        CheckpointError: it is damaged, cut short, not a checkpoint, or carries code.
    """
    inert: dict[str, type] = {**dict.fromkeys(_MAPPINGS, OrderedDict), **dict.fromkeys(_ARRAYS, _Inert)}
    try:
        while True:
            try:
                with torch.serialization.safe_globals([(kind, name) for name, kind in inert.items()]):
                    return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                name = _refused_name(str(error))
                if not name.startswith(_TOOLS) or name in inert or len(inert) > _MOST_NAMES:
                    raise
                # One of these tools wrote it. Its parts are allowed only together with it.
                inert |= dict.fromkeys((name, *_THEIR_PARTS), _Inert)
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


def check_pickled_file(path: Path) -> None:
    """Make sure, without unpickling anything, that a file is a PyTorch checkpoint and is there to its end.

    Raises:
        CheckpointError: it is something else, such as a web page, or is cut short.
    """
    with path.open("rb") as file:
        head = file.read(len(_LEGACY_MAGIC))
    if head == _LEGACY_MAGIC:
        return
    try:
        zipfile.ZipFile(path).close()  # reads the directory, which is an archive's last part
    except (zipfile.BadZipFile, OSError) as error:
        what = "a PyTorch checkpoint that is cut short" if head.startswith(b"PK") else "not a PyTorch checkpoint"
        raise CheckpointError(f"{path.name} is {what} (it begins with {head[:8]!r})") from error
