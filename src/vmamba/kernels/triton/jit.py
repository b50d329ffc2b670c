"""How a kernel of ours is compiled, and how what a call would launch can be collected instead of launched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton

#: Whether functions that are jitted from now on are interpreted on the CPU (``TRITON_INTERPRET=1``).
INTERPRETED = bool(triton.knobs.runtime.interpret)


class Launch(NamedTuple):
    """A launch that was asked for.

    Attributes:
        function: the jitted function.
        arguments: what it would have been given, in order; dtypes in place of tensors.
        constants: what it is compiled for.
    """

    function: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for launches that the same compiled kernel serves."""
        kinds = tuple(one if isinstance(one, torch.dtype) else _kind(one) for one in self.arguments)
        return (self.function.__name__, kinds, tuple(sorted(self.constants.items())))


def _kind(argument: object) -> object:
    if isinstance(argument, int):
        return "i32" if -(2**31) <= argument < 2**31 else "i64"
    return argument


_collected: list[Launch] | None = None


class Kernel:
    """A Triton function that is compiled for its constants and dtypes only: ``kernel[(programs,)](*arguments, …)``.

    Sizes, strides and alignments make no new kernels.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        parameters = inspect.signature(function).parameters.values()
        arguments = [one.name for one in parameters if "constexpr" not in str(one.annotation)]
        self.function: Any = triton.jit(function, do_not_specialize=arguments)
        self.__doc__ = function.__doc__

    def __getitem__(self, grid: tuple[int]) -> Callable[..., object]:
        launched: Callable[..., object] = self.function[grid] if _collected is None else self._collect
        return launched

    def _collect(self, *arguments: object, **constants: object) -> None:
        assert _collected is not None
        kinds = tuple(one.dtype if isinstance(one, torch.Tensor) else one for one in arguments)
        _collected.append(Launch(self.function, kinds, constants))


#: Decorates the kernels.
kernel = Kernel


@contextmanager
def collecting() -> Iterator[list[Launch]]:
    """Collect what is launched inside the ``with`` block instead of launching it. Not for several threads at once."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before
