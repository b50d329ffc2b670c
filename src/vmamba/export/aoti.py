"""AOTInductor's files: inductor's code for all but the scan, which runs this package's kernel.

The kernel goes into the file as machine code, from the static library that is built beside the one that Python loads
(``csrc/aoti.cpp``). So the file needs neither this package nor Python, holds the scan as one call for every size of
image, and is compiled in the time that the rest takes. Without that library, or with a torch that cannot call into it
(before 2.8), inductor compiles the scan too, from plain operations.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vmamba.export.graph import Graph, ScanForm
from vmamba.kernels.native import library as native

#: The C functions that stand for the scans' operators, as inductor is to declare them.
_TENSOR, _OPTIONAL = "AtenTensorHandle", "const AtenTensorHandle*"
_DECLARATIONS = {
    "ss2d_scan": (_TENSOR, _TENSOR, _TENSOR, _OPTIONAL, _TENSOR, _OPTIONAL, "const int64_t*", "int64_t"),
    "selective_scan": (_TENSOR, _TENSOR, _TENSOR, _TENSOR, _TENSOR, _OPTIONAL, _OPTIONAL),
}
_LAST = ("int32_t", "int32_t", "AtenTensorHandle*", "AtenTensorHandle*")  # softplus, save, y, saved


def write_aoti(graph: Graph, path: Path) -> list[Path]:
    """Compile ``graph`` into the package ``path``, which says what it is; return the files."""
    from torch._inductor import aoti_compile_and_package

    # Freezing lays the weights out for oneDNN's products; without it they go through slower ones.
    configs: dict[str, object] = {"aot_inductor.metadata": dict(graph.metadata), "freezing": True}
    library = kernel_library()
    if library is None:
        aoti_compile_and_package(graph.trace(), package_path=str(path), inductor_configs=configs)
        return [path]
    operators = torch.ops.vmamba
    configs["aot_inductor.custom_ops_to_c_shims"] = {
        getattr(operators, name).default: [f"AOTITorchError aoti_torch_cpu_{name}({', '.join((*arguments, *_LAST))})"]
        for name, arguments in _DECLARATIONS.items()
    }
    configs["aot_inductor.custom_op_libs"] = [library.stem.removeprefix("lib")]
    # Inductor calls the operators once more as it lowers them.
    with torch.no_grad(), _searched(library.parent):
        aoti_compile_and_package(graph.trace(ScanForm.KERNEL), package_path=str(path), inductor_configs=configs)
    return [path]


def kernel_library() -> Path | None:
    """The static library of the scans, or None where it, or torch's way of calling it, is missing."""
    from torch._inductor import config

    if not hasattr(config.aot_inductor, "custom_ops_to_c_shims") or native.obstacle() is not None:
        return None
    loaded = native.library_path()
    assert loaded is not None
    path = loaded.with_name("libvmamba_scan.a")
    return path if path.exists() else None


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    """Let linkers look for libraries in ``folder`` too; inductor's settings name libraries, but no folders."""
    name = "LIBRARY_PATH"
    before = os.environ.get(name)
    os.environ[name] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
