"""The files of `vmamba export` as networks, run by ONNX Runtime, OpenVINO or PyTorch, and the metadata that they carry.

What these mean, `vmamba.tasks` knows.
"""

from __future__ import annotations

import importlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import CheckpointError, ConfigError, InputError, VMambaError

#: The name inside a torch-export file of what it says about itself.
METADATA_FILE = "vmamba.json"
#: Where an OpenVINO file keeps that, in its runtime information.
OPENVINO_ENTRY = "vmamba"


class ExportedModel(nn.Module):
    """An exported file as a module, on the CPU: pixels ``(b, in_chans, H, W)`` to the first output ``(b, …)``.

    A file with a fixed batch size takes any number of images here: they go through in parts, the last filled up.

    Args:
        kind: what kind of file it is, for messages.
        run: from pixels to the output.
        shape: of the images that ``run`` takes; None where any size will do.
    """

    def __init__(self, kind: str, run: Callable[[Tensor], Tensor], shape: Sequence[int | None]) -> None:
        super().__init__()
        self.kind = kind
        self.shape = tuple(shape)
        self._run = run

    def forward(self, pixels: Tensor) -> Tensor:
        """``(b, in_chans, H, W) → (b, …)``.

        Raises:
            InputError: the file was made for another size.
        """
        for size, given in zip(self.shape[1:], pixels.shape[1:], strict=True):
            if size not in (None, given):
                shape = ", ".join("any" if each is None else str(each) for each in self.shape)
                raise InputError(
                    f"the {self.kind} file takes images ({shape}), given {tuple(pixels.shape)}; "
                    "`vmamba export --dynamic batch,height,width` makes one that takes every size; a segmenter's is "
                    "shown windows of its size with mode=slide"
                )
        batch = self.shape[0] or max(1, len(pixels))
        parts = [self._filled_up(part, batch) for part in pixels.float().split(batch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)  # which would copy scores of whole images

    def _filled_up(self, pixels: Tensor, batch: int) -> Tensor:
        count = len(pixels)
        if count < batch:
            pixels = torch.cat([pixels, pixels.new_zeros(batch - count, *pixels.shape[1:])])
        return self._run(pixels)[:count]


Opened = tuple[ExportedModel, dict[str, str]]


@dataclass(frozen=True)
class Kind:
    """A kind of exported file that can be used as weights.

    Attributes:
        target: what `vmamba export --to` calls it.
        package: the module that runs it.
        runtime: what that is called.
        open: make a file runnable; returns its metadata too.
    """

    target: str
    package: str
    runtime: str
    open: Callable[[Path], Opened]


def kind_of(path: Path) -> Kind | None:
    """The kind of exported file, by its name; None for weights and runs."""
    return None if path.is_dir() else KINDS.get(path.suffix.lower())


def open_exported(path: Path) -> Opened:
    """The network of an exported file, and what the file says about itself: empty where it is not ours.

    Raises:
        ConfigError: what runs it is not installed.
        CheckpointError: the file is missing, of no kind that can be run here, or broken.
    """
    kind = kind_of(path)
    if kind is None:
        raise CheckpointError(f"{path} is no exported file; want a name that ends in {', '.join(KINDS)}")
    try:
        importlib.import_module(kind.package)
    except ImportError as error:
        raise ConfigError(
            f'{path} needs {kind.runtime}, which is not installed: pip install "vmamba[{kind.target}]"'
        ) from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return kind.open(path)
    except VMambaError:
        raise
    except Exception as error:  # the runtimes raise many kinds
        reason = _reason(error)
        raise CheckpointError(f"{path} cannot be run by {kind.runtime} ({reason}); export it again") from error


def _reason(error: Exception) -> str:
    """The first line that is not about the runtime's own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check '"))), type(error).__name__)


def _open_onnx(path: Path) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about graphs, not for the user
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pixels = session.get_inputs()[0]

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {pixels.name: images.numpy()})[0])

    shape = [size if isinstance(size, int) else None for size in pixels.shape]
    return ExportedModel("ONNX", run, shape), dict(session.get_modelmeta().custom_metadata_map)


def _open_openvino(path: Path) -> Opened:
    import openvino

    with path.open("rb") as file:  # given anything else, it tries every format there is and tells of each
        if b"<net" not in file.read(1024):
            raise CheckpointError(f"{path} is no OpenVINO file: it holds no network; export it again")
    core = openvino.Core()
    model = core.read_model(path)
    names: Sequence[str] = list(model.get_rt_info(OPENVINO_ENTRY).value) if model.has_rt_info(OPENVINO_ENTRY) else []
    metadata = {name: str(model.get_rt_info([OPENVINO_ENTRY, name]).astype(str)) for name in names}
    # Left to itself it computes in bfloat16 wherever the processor can.
    precision = "bf16" if metadata.get("dtype") == "bfloat16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled: Any = core.compile_model(model, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()])[0])

    shape = [None if size.is_dynamic else size.get_length() for size in model.input(0).partial_shape]
    return ExportedModel("OpenVINO", run, shape), metadata


def _open_torch_export(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        if any("data/aotinductor/" in name for name in archive.namelist()):
            raise CheckpointError(
                f"{path} is a file of `vmamba export --to aoti`, which torch._inductor.aoti_load_package runs; "
                f"export to {', '.join(kind.target for kind in KINDS.values())}"
            )
    extra = {METADATA_FILE: ""}
    with _quiet("torch.export"):
        program = torch.export.load(path, extra_files=extra)
    module = program.module()
    name = program.graph_signature.user_inputs[0]
    (pixels,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    shape = [size if isinstance(size, int) else None for size in pixels.meta["val"].shape]
    metadata = json.loads(extra[METADATA_FILE] or "{}")
    return ExportedModel("torch-export", run, shape), metadata


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger that tells what is raised too."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


#: By how their names end.
KINDS: Mapping[str, Kind] = {
    ".onnx": Kind("onnx", "onnxruntime", "ONNX Runtime", _open_onnx),
    ".xml": Kind("openvino", "openvino", "OpenVINO", _open_openvino),
    ".pt2": Kind("torch-export", "torch", "PyTorch", _open_torch_export),
}
