"""Kernel calls made as they come, or written down once and then made all together.

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

from vmamba.kernels.interface import Run, record
from vmamba.kernels.native import library as native
from vmamba.kernels.native.library import Step


class Steps(Protocol):
    """Where a layer's kernel calls go, and the memory that they use."""

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Contiguous memory that keeps its contents until the next request by the same name."""

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Contiguous memory that keeps its contents until the second next request."""

    def updated(self, x: Tensor) -> Tensor:
        """Contiguous memory for ``x`` plus something: perhaps that of ``x``, which must not be used any more then."""

    def add(self, step: Step) -> None:
        """Make the call, now or later."""


class Immediate:
    """Makes each call at once, in memory of its own."""

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Steps`."""
        return torch.empty(shape, dtype=dtype)

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Steps`."""
        return torch.empty(shape, dtype=dtype)

    def updated(self, x: Tensor) -> Tensor:
        """See `Steps`."""
        return torch.empty(x.shape, dtype=x.dtype)

    def add(self, step: Step) -> None:
        """See `Steps`."""
        _record(step, native.run(step))


def _record(step: Step, isa: str) -> None:
    """Tell `recorded_runs` of a call that is a scan."""
    if step.name == "ss2d_forward":
        record(Run("oflex", "ss2d_scan", detail=isa))


class _Reused(Immediate):
    """Memory that is used again: two buffers for results, and what is updated stays where it is."""

    def __init__(self) -> None:
        self._results = 0

    def result(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Steps`."""
        self._results += 1
        return self.buffer(f"result {self._results % 2}", shape, dtype)

    def updated(self, x: Tensor) -> Tensor:
        """See `Steps`."""
        return x


class _Sizes(_Reused):
    """Makes no calls; notes how much memory they use."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        memory = torch.empty(shape, dtype=dtype)
        self.bytes[name] = max(self.bytes.get(name, 0), memory.nbytes)
        return memory

    def add(self, step: Step) -> None:
        pass


class _StepArg(ctypes.Structure):  # vmamba::Step
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
        self,
        build: Callable[[Tensor, Steps], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        bytes: dict[str, int],
    ) -> None:
        super().__init__()
        self._memory = {name: torch.empty(size, dtype=torch.uint8) for name, size in bytes.items()}
        self._steps: list[Step] = []
        self._lock = threading.Lock()
        self._input = torch.empty(shape, dtype=dtype)
        self._output = build(self._input, self)
        isas = native.isas()[0]
        self._isas = [step.isa or native.isa() for step in self._steps]
        self._table = (_StepArg * len(self._steps))(
            *(
                _StepArg(
                    ctypes.cast(native.kernel(step.name), ctypes.c_void_p),
                    ctypes.addressof(step.args),
                    ctypes.sizeof(step.args),
                    isas.index(isa),
                )
                for step, isa in zip(self._steps, self._isas, strict=True)
            )
        )
        self._run = native.kernel("run_program")

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Steps`."""
        count = math.prod(shape)
        return self._memory[name][: count * dtype.itemsize].view(dtype).view(tuple(shape))

    def add(self, step: Step) -> None:
        """See `Steps`."""
        self._steps.append(step)

    def __call__(self, x: Tensor) -> Tensor:
        """The output for ``x``, which is taken in any memory format and floating-point dtype."""
        with self._lock:  # one memory for all
            self._input.copy_(x)
            if self._run(self._table, ctypes.c_int64(len(self._steps))) != 0:
                raise native.other_sources()
            y = self._output.clone()
        for step, isa in zip(self._steps, self._isas, strict=True):
            _record(step, isa)
        return y


def memory_of(build: Callable[[Tensor, Steps], Tensor], shape: Sequence[int], dtype: torch.dtype) -> dict[str, int]:
    """The bytes of each buffer that ``build`` uses for an input of this shape."""
    sizes = _Sizes()
    build(torch.empty(shape, dtype=dtype), sizes)
    return sizes.bytes
