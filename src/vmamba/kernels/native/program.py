"""Kernel calls made one by one, or recorded beforehand and then made all together by one call from Python.

Python's part of a call takes 10 to 20 µs, and several times that right after a kernel that went through more memory
than the caches hold. A forward pass of a hundred calls at 0.5 ms each would lose a tenth to it. A `Program` is such a
pass for one input shape: its calls' arguments are made once, it keeps the memory that they use, and running it is one
call.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vmamba.kernels.interface import Operator, ScanRun, record
from vmamba.kernels.native import library
from vmamba.kernels.native.library import KernelCall


class Calls(Protocol):
    """Where a layer's kernel calls go, and the memory that they use. All of it is on the CPU."""

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Contiguous memory that keeps its contents until the next request by the same name."""

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Contiguous memory that keeps its contents until the second next request."""

    def updated(self, x: Tensor) -> Tensor:
        """Contiguous memory for ``x`` plus something: perhaps that of ``x``, which must not be used any more then."""

    def add(self, call: KernelCall) -> None:
        """Make the call, now or later."""


class Immediate:
    """Makes each call at once, in memory of its own."""

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Calls`."""
        return _memory(shape, dtype)

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Calls`."""
        return _memory(shape, dtype)

    def updated(self, x: Tensor) -> Tensor:
        """See `Calls`."""
        return _memory(x.shape, x.dtype)

    def add(self, call: KernelCall) -> None:
        """See `Calls`."""
        _record(call, library.run(call))


def _memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


#: The kernels that are scans, and of which operator.
_SCANS: dict[str, Operator] = {"ss2d_forward": "ss2d_scan", "ssd_forward": "ssd_scan"}


def _record(call: KernelCall, isa: str) -> None:
    """Tell `recorded_runs` of a call that is a scan."""
    scan = _SCANS.get(call.name)
    if scan is not None:
        record(ScanRun("oflex", scan, detail=isa))


class _Reused(Immediate):
    """Memory that is used again: two buffers for results, and what is updated stays where it is."""

    def __init__(self) -> None:
        self._results = 0

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Calls`."""
        self._results += 1
        return self.buffer(f"result {self._results % 2}", shape, dtype)

    def updated(self, x: Tensor) -> Tensor:
        """See `Calls`."""
        return x


class _Sizes(_Reused):
    """Makes no calls; notes how much memory they use."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        memory = _memory(shape, dtype)
        self.bytes[name] = max(self.bytes.get(name, 0), memory.nbytes)
        return memory

    def add(self, call: KernelCall) -> None:
        pass


class _Recorded(ctypes.Structure):  # vmamba::Step of csrc/entry/program.cpp
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("isa", ctypes.c_int64),
    )


class Program(_Reused):
    """The calls of ``build`` for one shape.

    Args:
        build: given the input and where calls go, returns the output.
        shape, dtype: of the input.
        bytes: of each buffer, from `memory_of`.
    """

    def __init__(
        self, build: Callable[[Tensor, Calls], Tensor], shape: Sequence[int], dtype: torch.dtype, bytes: dict[str, int]
    ) -> None:
        super().__init__()
        self._calls: list[KernelCall] = []
        self._lock = threading.Lock()
        # Memory made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._memory = {name: _memory([size], torch.uint8) for name, size in bytes.items()}
            self._input = _memory(shape, dtype)
            self._output = build(self._input, self)
        isas = library.isas()[0]
        self._isas = [call.isa or library.isa() for call in self._calls]
        self._table = (_Recorded * len(self._calls))(
            *(
                _Recorded(
                    ctypes.cast(library.kernel(call.name), ctypes.c_void_p),
                    ctypes.addressof(call.args),
                    ctypes.sizeof(call.args),
                    isas.index(isa),
                )
                for call, isa in zip(self._calls, self._isas, strict=True)
            )
        )
        self._run = library.kernel("run_program")

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Calls`."""
        count = math.prod(shape)
        return self._memory[name][: count * dtype.itemsize].view(dtype).view(tuple(shape))

    def add(self, call: KernelCall) -> None:
        """See `Calls`."""
        self._calls.append(call)

    def __call__(self, x: Tensor) -> Tensor:
        """The output for ``x``, which is taken in any memory format and floating-point dtype."""
        with self._lock:  # one memory for all
            self._input.copy_(x)
            if self._run(self._table, ctypes.c_int64(len(self._calls))) != 0:
                raise library.other_sources()
            y = self._output.clone()
        for call, isa in zip(self._calls, self._isas, strict=True):
            _record(call, isa)
        return y


def memory_of(build: Callable[[Tensor, Calls], Tensor], shape: Sequence[int], dtype: torch.dtype) -> dict[str, int]:
    """The bytes of each buffer that ``build`` uses for an input of this shape."""
    sizes = _Sizes()
    build(_memory(shape, dtype), sizes)
    return sizes.bytes
