"""Run a simple Triton kernel on the CPU, one program after another: slow, and for sure what its author wrote.

For kernels that move and add elements, as VMamba's cross-scans do: ``program_id``, ``arange``, ``load`` and ``store``
with masks, and Python's arithmetic. Triton's own interpreter does more, but has to be asked for before Triton is
imported, and Triton may be missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError


class CpuKernel:
    """Stands for a function under ``@triton.jit``: ``kernel[grid](*arguments)``.

    Args:
        fn: the Python function under the decorator.
    """

    def __init__(self, fn: FunctionType) -> None:
        self.fn = fn

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            place = _Language(self.fn.__name__)
            # The kernel's own function, with another `tl`: a copy, since threads may launch at once.
            spaces = {name: place for name, value in self.fn.__globals__.items() if _is_language(value)}
            kernel = FunctionType(self.fn.__code__, {**self.fn.__globals__, **spaces}, self.fn.__name__)
            pointers = [_Pointer(a.view(-1)) if isinstance(a, Tensor) else a for a in arguments]
            for place.ids in itertools.product(*map(range, grid)):
                kernel(*pointers, **named)

        return launch


def python_function(value: object) -> FunctionType | None:
    """The Python function under Triton's decorators, or None for what is no kernel."""
    if isinstance(value, type) or type(value).__module__.partition(".")[0] not in ("triton", "vmamba"):
        return None
    while not isinstance(value, FunctionType):
        value = getattr(value, "fn", None)
        if value is None:
            return None
    return value


def _is_language(value: object) -> bool:
    return isinstance(value, ModuleType) and value.__name__ == "triton.language"


class _Pointer:
    """The address of elements: of one, or of a block of them."""

    def __init__(self, elements: Tensor, offset: Any = 0) -> None:
        self.elements = elements
        self.offset = offset

    def __add__(self, offset: Any) -> _Pointer:
        return _Pointer(self.elements, self.offset + offset)

    __radd__ = __add__

    def __sub__(self, offset: Any) -> _Pointer:
        return _Pointer(self.elements, self.offset - offset)


class _Language:
    """What such a kernel calls of ``triton.language``."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.ids: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        raise NotProvidedError(
            f"the Triton kernel {self.kernel} calls tl.{name}, which vmamba does not run on the CPU; "
            "it runs program_id, arange, load and store: run this on a GPU"
        )

    def program_id(self, axis: int) -> int:
        return self.ids[axis]

    def arange(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end)

    def debug_barrier(self) -> None: ...

    def load(self, pointer: _Pointer, mask: Any = None, other: float = 0) -> Tensor:
        place = torch.as_tensor(pointer.offset)
        inside = (place >= 0) & (place < pointer.elements.numel())
        seen = inside if mask is None else inside & mask
        values = pointer.elements[place.clamp(0, pointer.elements.numel() - 1)]
        return torch.where(seen, values, torch.as_tensor(other, dtype=values.dtype))

    def store(self, pointer: _Pointer, value: Any, mask: Any = True) -> None:
        place = torch.as_tensor(pointer.offset)
        place, values, wanted = torch.broadcast_tensors(place, torch.as_tensor(value), torch.as_tensor(mask))
        pointer.elements[place[wanted]] = values[wanted].to(pointer.elements.dtype)
