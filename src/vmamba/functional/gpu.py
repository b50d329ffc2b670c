"""What the functions of this folder ask before they take a Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels import triton

DTYPES = triton.DTYPES
_DEVICE = "cuda"


def takes_kernels(*tensors: Tensor | None) -> bool:
    """Whether this is an ordinary call, of 16- or 32-bit tensors on one GPU that are not empty.

    While `torch.compile` traces, tensors have no memory and the answer holds for the graph; exporters and transforms
    of `torch.func` always get standard operations, and so do the symbols that `torch.fx` traces with.
    """
    first = tensors[0]
    if not isinstance(first, Tensor) or first.device.type != _DEVICE:
        return False
    traced = torch.compiler.is_compiling()
    if _torch.is_exporting() or _torch.is_functorch_traced() if traced else not _torch.is_plain(*tensors):
        return False
    device, strided = first.device, torch.strided
    for t in tensors:  # a generator would take twice as long, and a step asks two hundred times
        if t is None:
            continue
        if t.dtype not in DTYPES or t.device != device or t.layout != strided or t.numel() == 0:
            return False
        if not traced and not _torch.has_memory(t):  # torch.autograd.grad(is_grads_batched=True)
            return False
    return _there()


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """What autocast converts the inputs of products and convolutions on the device of ``t`` to; None without it."""
    device = t.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@_torch.constant_in_graphs
def _there() -> bool:
    return triton.machine_obstacle() is None
