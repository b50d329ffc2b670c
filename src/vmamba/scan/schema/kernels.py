"""Who computes on which device, what kernels may be given, and the memory that they fill."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import BackendError, InputError
from vmamba.kernels import native, triton


class Kernels(NamedTuple):
    """Modules with ``saved_shape``, ``forward`` and ``backward``, and the dtypes of what is not a parameter."""

    selective_scan: ModuleType
    ss2d_scan: ModuleType
    dtypes: frozenset[torch.dtype]


@functools.cache
def of_cpu() -> Kernels:
    """Who computes on a CPU."""
    return Kernels(native.selective_scan, native.ss2d_scan, frozenset(native.DTYPE_CODES))


@functools.cache
def of_gpu() -> Kernels:
    """Who computes on a GPU."""
    # Triton is imported where a GPU is used: it takes a second, and not every machine has it.
    selective_scan, ss2d_scan = map(importlib.import_module, triton.SCANS)
    return Kernels(selective_scan, ss2d_scan, triton.DTYPES)


#: Device type -> who computes there.
KERNELS: Mapping[str, Callable[[], Kernels]] = {"cpu": of_cpu, "cuda": of_gpu, "xpu": of_gpu}


def kernels_of(t: Tensor) -> Kernels:
    """Who computes on the tensor's device."""
    return kernels_on(t.device.type)


def kernels_on(device: str) -> Kernels:
    """Who computes on a type of device; raises `BackendError` where nobody does."""
    found = KERNELS.get(device)
    if found is None:
        raise BackendError(
            f'there are no compiled kernels for {device} tensors, only for {", ".join(KERNELS)}; use backend="torch"'
        )
    return found()


def checked(kernels: Kernels, maps: Sequence[Tensor], parameters: Sequence[Tensor | None]) -> None:
    """Make sure that every address that goes to a kernel is one, on one device, of a type that it knows.

    For whoever calls the operators by hand; `vmamba.scan`'s own functions have looked already.
    """
    device, strided, full = maps[0].device, torch.strided, torch.float32
    for t in maps:
        if t.dtype not in kernels.dtypes or t.device != device or t.layout != strided or not _torch.has_memory(t):
            raise _refusal(t, device)
    for p in parameters:
        if p is not None and (p.dtype != full or p.device != device or p.layout != strided or not _torch.has_memory(p)):
            raise _refusal(p, device)


def checked_places(places: Tensor, k: int, sizes: Sequence[int], device: torch.device) -> Tensor:
    """The table of ``k`` directions, contiguous, if every number in it is a place of the map: they become addresses."""
    count = math.prod(sizes)
    if places.dtype != torch.int32 or places.shape != (k, count) or places.device != device:
        raise InputError(
            f"places must be int32 of shape (k, l) = {(k, count)} on {device}, given {places.dtype} of shape "
            f"{tuple(places.shape)} on {places.device}"
        )
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < count:
        raise InputError(f"places must lie in 0 … {count - 1}, given {int(places.min())} … {int(places.max())}")
    return places.contiguous()


def _refusal(t: Tensor, device: torch.device) -> InputError | BackendError:
    if t.device != device or t.layout != torch.strided or not _torch.has_memory(t):
        return InputError(
            f"the scan's kernels take dense tensors on one device, given a {t.layout} tensor on {t.device} beside one "
            f"on {device}; convert it with .to() or .to_dense()"
        )
    return BackendError(f"the scan's kernels take parameters in float32, the rest in 16 or 32 bits, given {t.dtype}")


def workspace(like: Tensor) -> Callable[[int], Tensor]:
    """What makes float32 memory of so many elements beside ``like``."""
    return lambda elements: like.new_empty(elements, dtype=torch.float32)


def memory_for_states(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for the states that backward starts from; what the kernels leave alone of it is zero."""
    saved = like.new_empty(tuple(shape), dtype=torch.float32)
    saved[-2:].zero_()
    return saved


def dense(like: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """Contiguous memory in the shape and on the device of ``like``; in its dtype where None is given."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def memory_like(inputs: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Memory for the gradient of each input, empty where there is none."""
    first = inputs[0]
    assert first is not None
    return tuple(first.new_empty(0) if t is None else dense(t, dtype) for t in inputs)


def if_given(t: Tensor | None) -> tuple[Tensor, ...]:
    """The tensor, or nothing."""
    return () if t is None else (t,)


def as_float(t: Tensor | None) -> Tensor | None:
    """In float32, as kernels take parameters and states."""
    return None if t is None else t.float()


def narrowed(t: Tensor) -> Tensor:
    """In float32 where it is float64, which kernels do not have."""
    return t.float() if t.dtype == torch.float64 else t
