"""The kernels that a model will launch, known without a GPU, and compiled before they are wanted."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vmamba.errors import BackendError
from vmamba.kernels import triton as machine
from vmamba.scan.dispatch import backend, stand_in
from vmamba.scan.orders import readings_of

if TYPE_CHECKING:
    from vmamba.kernels.triton.jit import Launch


class _Recorder:
    """Stands in for a backend and notes the 2-d scans that it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], str, bool]] = []

    def ss2d_scan(self, *arguments: Any) -> Tensor:
        *tensors, scan_mode, softplus = arguments
        self.calls.append((tuple(tensors), scan_mode, softplus))
        x: Tensor = tensors[0]
        return x.new_empty(x.shape, dtype=torch.float32)

    def selective_scan(self, *_: Any) -> Tensor:
        raise BackendError(
            "the kernels of scans that are not one of upstream's scan modes over an image (scan_orders of one's own, "
            "SS1D, SS3D) are not known beforehand; the first batch compiles them"
        )


def launches(
    model: nn.Module,
    images: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    training: bool = True,
    distinct: bool = True,
) -> list[Launch]:
    """What the scans of ``model`` launch on a GPU for one batch; nothing runs.

    Args:
        model: any module with `SS2D` layers that takes images; on any device.
        images: shape of the batch, ``(b, c, h, w)``.
        dtype: of the activations: float32, or autocast's.
        training: with what backward launches.
        distinct: one launch for each kernel instead of all.
    """
    from vmamba.kernels.triton.jit import collecting  # which imports Triton

    recorder = _Recorder()
    shapes = copy.deepcopy(model).to("meta")
    with torch.no_grad(), backend("torch"), stand_in("torch", recorder):
        shapes(torch.empty(tuple(images), device="meta"))
    with collecting() as collected:
        for tensors, scan_mode, softplus in recorder.calls:
            x, x_dbl, *parameters = tensors
            _launch(x.to(dtype), x_dbl.to(dtype), parameters, scan_mode, softplus, training)
    return list({one.key: one for one in collected}.values()) if distinct else collected


def _launch(
    x: Tensor, x_dbl: Tensor, parameters: Sequence[Tensor | None], scan_mode: str, softplus: bool, training: bool
) -> None:
    from vmamba.kernels.triton.scans import ss2d_scan

    def workspace(elements: int) -> Tensor:
        return torch.empty(elements, device="meta")

    dt_weight, dt_bias, A, D = (None if t is None else t.float() for t in parameters)
    assert dt_weight is not None
    assert A is not None
    inputs, readings = (x, x_dbl, dt_weight, dt_bias, A, D), readings_of(scan_mode)
    y = torch.empty(x.shape, device="meta")
    saved = torch.empty(ss2d_scan.saved_shape(x, A), device="meta") if training else None
    ss2d_scan.forward(*inputs, readings, softplus, y, saved, workspace)
    if saved is not None:
        gradients = [None if t is None else torch.empty(t.shape, device="meta") for t in inputs]
        ss2d_scan.backward(y, saved, *inputs, readings, softplus, gradients, workspace)


def warm(model: nn.Module, images: Sequence[int], dtype: torch.dtype = torch.float32, *, training: bool = True) -> int:
    """Compile the scan kernels of ``model`` for this machine's GPU, side by side, before the first batch wants them.

    They are kept where Triton keeps its kernels (``TRITON_CACHE_DIR``), so that later processes find them too. Sizes of
    images and batches make no new kernels; what makes some are the channels, ranks and states, dtypes, and training.

    Args:
        model: the network, on any device.
        images: shape of a batch, ``(b, channels, height, width)``.
        dtype: of the activations.
        training: whether backward is wanted too.

    Returns:
        how many kernels the model has.

    Raises:
        BackendError: the kernels cannot run on this machine, or the model scans in orders of its own; says why.
    """
    obstacle = machine.machine_obstacle()
    if obstacle is not None:
        raise BackendError(f"there is nothing to compile for: {obstacle}")
    wanted = launches(model, images, dtype, training=training)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, wanted))
    return len(wanted)


def _compile(launch: Launch) -> None:
    launch.function.warmup(*launch.arguments, grid=(1,), **launch.constants)
