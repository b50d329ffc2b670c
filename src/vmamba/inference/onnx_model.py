"""Exported ONNX files, run by ONNX Runtime, and the metadata that they carry. What these mean, `vmamba.tasks` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import CheckpointError, ConfigError, InputError


class OnnxModel(nn.Module):
    """An ONNX Runtime session as a module, on the CPU: pixels ``(b, in_chans, H, W)`` to the first output ``(b, …)``.

    A file with a fixed batch size takes any number of images here: they go through in parts, the last filled up.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self._input = session.get_inputs()[0]
        size = self._input.shape[0]
        self._batch: int | None = size if isinstance(size, int) else None

    def forward(self, pixels: Tensor) -> Tensor:
        """``(b, in_chans, H, W) → (b, …)``."""
        for axis, size in enumerate(self._input.shape[1:], 1):
            if isinstance(size, int) and size != pixels.shape[axis]:
                raise InputError(
                    f"the ONNX file takes images {self._input.shape}, given {tuple(pixels.shape)}; "
                    "`vmamba export --dynamic batch,height,width` makes one that takes every size"
                )
        parts = [self._run(part) for part in pixels.split(self._batch or max(1, len(pixels)))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)  # which would copy scores of whole images

    def _run(self, pixels: Tensor) -> Tensor:
        count = len(pixels)
        if self._batch is not None and count < self._batch:
            pixels = torch.cat([pixels, pixels.new_zeros(self._batch - count, *pixels.shape[1:])])
        values = self._session.run(None, {self._input.name: pixels.float().numpy()})[0]
        return torch.from_numpy(values)[:count]


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as torch has.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: the file is missing or is not ONNX.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f'{path} needs ONNX Runtime, which is not installed: pip install "vmamba[onnx]"') from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about graphs, not for the user
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises many kinds, all derived from Exception alone
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be run by ONNX Runtime ({reason}); export it again") from error


def open_onnx(path: Path) -> tuple[OnnxModel, dict[str, str]]:
    """The network of an ONNX file and the file's metadata.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: the file is missing or is not ONNX.
    """
    session = open_session(path)
    return OnnxModel(session), dict(session.get_modelmeta().custom_metadata_map)
