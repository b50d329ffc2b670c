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
    if not isinstance(first, Tensor) or first.device.type != _DEVICE or not _is_ordinary(*tensors):
        return False
    fits = all(
        t is None or (t.dtype in DTYPES and t.device == first.device and t.layout == torch.strided and t.numel() > 0)
        for t in tensors
    )
    return fits and _there()


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """What autocast converts the inputs of products and convolutions on the device of ``t`` to; None without it."""
    device = t.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _is_ordinary(*tensors: Tensor | None) -> bool:
    if torch.compiler.is_compiling():
        return not _torch.is_exporting() and not _torch.is_functorch_traced()
    # Without memory: torch.autograd.grad(is_grads_batched=True).
    return _torch.is_plain(*tensors) and all(t is None or _torch.has_memory(t) for t in tensors)


@_torch.constant_in_graphs
def _there() -> bool:
    return triton.machine_obstacle() is None
