"""The kinds of files that a model is exported to: how each is written, and how it is run to be checked."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vmamba.errors import ExportError
from vmamba.export.aoti import write_aoti
from vmamba.export.graph import Graph, ScanForm
from vmamba.inference.exported import METADATA_FILE, OPENVINO_ENTRY, open_exported

#: Pixels ``(b, in_chans, H, W)`` to logits ``(b, classes)``.
Runner = Callable[[Tensor], Tensor]

#: The first torch whose ONNX exporter takes our translations; the extras ask for it.
_ONNX_TORCH = "2.9"
_INPUT, _OUTPUT = "pixels", "logits"
_MOST_BYTES = 2 * 10**9  # protobuf's limit is 2 GiB


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        suffix: how its name ends.
        default_ending: what is put behind a model's name.
        packages: modules that it needs besides this package's own requirements.
        extra: the extra that installs them.
        dtypes: what it may compute in.
        dtype_reason: why nothing else.
        write: write a graph to a path, and return the files, that path first.
        open: make a file runnable.
    """

    suffix: str
    default_ending: str
    packages: tuple[str, ...]
    extra: str
    dtypes: tuple[str, ...]
    dtype_reason: str
    write: Callable[[Graph, Path], list[Path]]
    open: Callable[[Path], Runner]

    def obstacle(self) -> str:
        """What must be installed first and how, or an empty string."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if self.packages and torch.__version__ < _ONNX_TORCH:
            missing.insert(0, f"torch {_ONNX_TORCH} or newer (this is {torch.__version__})")
        return f'needs {", ".join(missing)}: pip install "vmamba[{self.extra}]"' if missing else ""


def _write_torch_export(graph: Graph, path: Path) -> list[Path]:
    torch.export.save(
        graph.trace(), path, extra_files={METADATA_FILE: json.dumps(dict(graph.metadata), ensure_ascii=False)}
    )
    return [path]


def _open(path: Path) -> Runner:
    return open_exported(path)[0]


def _open_aoti(path: Path) -> Runner:
    from torch._inductor import aoti_load_package

    module = aoti_load_package(str(path))

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(pixels)
        return logits

    return run


def _write_onnx(graph: Graph, path: Path) -> list[Path]:
    from vmamba.export.onnx_scan import OPSET, translations

    if sum(t.numel() * t.element_size() for t in graph.model.state_dict().values()) > _MOST_BYTES:
        raise ExportError("the weights are larger than an ONNX file can be (2 GB); export to torch-export")
    traced = graph.trace(ScanForm.ROWS)
    program = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        custom_translation_table=translations(),
        input_names=[_INPUT],
        output_names=[_OUTPUT],
        verbose=False,
    )
    assert program is not None
    foreign = sorted(domain for domain in program.model.opset_imports if domain)
    if foreign:
        raise ExportError(f"the graph has operators that are not standard ONNX, of {', '.join(foreign)}")
    names = zip(graph.open_sizes(traced), graph.axes, strict=True)
    program.rename_axes({str(size): axis for size, axis in names})
    program.model.metadata_props.update(graph.metadata)
    program.save(path, external_data=False)
    return [path]


def _write_openvino(graph: Graph, path: Path) -> list[Path]:
    import openvino

    # By way of ONNX, which keeps the recurrence one operator; the plain operations of torch's graph take longer.
    (onnx_path,) = _write_onnx(graph, path.with_suffix(".onnx"))
    model = openvino.Core().read_model(onnx_path)
    metadata = {**graph.metadata, "dtype": str(graph.dtype).removeprefix("torch.")}  # which its runtime asks for
    for name, text in metadata.items():
        model.set_rt_info(text, [OPENVINO_ENTRY, name])
    openvino.save_model(model, path, compress_to_fp16=graph.dtype != torch.float32)
    del model
    onnx_path.unlink()
    return [path, path.with_suffix(".bin")]


_BOTH = ("float32", "bfloat16")
TARGETS: Mapping[str, Target] = {
    "torch-export": Target(".pt2", ".export.pt2", (), "", _BOTH, "it computes in either", _write_torch_export, _open),
    "aoti": Target(".pt2", ".aoti.pt2", (), "", _BOTH, "it computes in either", write_aoti, _open_aoti),
    "onnx": Target(
        ".onnx",
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
        ("float32",),
        "ONNX Runtime has no bfloat16 kernels for the CPU; use float32, or --to openvino",
        _write_onnx,
        _open,
    ),
    "openvino": Target(
        ".xml",
        ".xml",
        ("onnx", "onnxscript", "openvino"),
        "openvino",
        _BOTH,
        "it computes in either",
        _write_openvino,
        _open,
    ),
}
