"""What can run a model: PyTorch's eager mode and compilers, `vmamba.optimize`, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba import _torch
from vmamba.export.graph import Graph
from vmamba.export.targets import TARGETS
from vmamba.inference.engines import optimize
from vmamba.models import VSSM

#: By name, what it is.
ENGINES = {
    "eager": "PyTorch, operation by operation",
    "compile": "torch.compile with frozen weights and fixed sizes",
    "optimize": "vmamba.optimize; for timm's models the same as compile",
    "aoti": "AOTInductor's compiled file",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}


class Absent(Exception):  # noqa: N818 — nothing went wrong
    """An engine cannot run the model here; says why."""


def runner(engine: str, model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Make ``model`` ready to run on ``x`` by ``engine``.

    Args:
        engine: one of `ENGINES`.
        model: in evaluation mode, float32; it is not changed.
        x: the images, float32.
        dtype: what to compute in.

    Returns:
        what to call; it returns the output.

    Raises:
        Absent: the engine is not installed, or not for this dtype or device.
    """
    if engine == "optimize" and isinstance(model, VSSM):
        return _module(optimize(model, dtype, x), x)
    if engine in ("aoti", "onnx", "openvino"):
        return _exported(engine, model, x, dtype)
    model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    if engine == "eager":
        return _module(model, x)
    # Fixed sizes, for which inductor makes the faster graph of timm's models.
    run = _module(torch.compile(model, dynamic=False), x)
    with _torch.frozen_weights():
        run()
    return run


def _module(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return run


def _exported(engine: str, model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    target, name = TARGETS[engine], str(dtype).removeprefix("torch.")
    if obstacle := target.obstacle():
        raise Absent(obstacle)
    if x.device.type != "cpu":
        raise Absent("timed here on the CPU only")
    if name not in target.dtypes:
        raise Absent(target.dtype_reason)
    graph = Graph(model, x, (), dtype, {})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / f"model{target.suffix}"
        target.write(graph, path)
        run = target.open(path)
    return lambda: run(x)
