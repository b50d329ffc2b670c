"""How a kernel of ours is compiled and launched, and how what a call would launch can be collected instead.

Triton's own way to a launch looks at each of some 70 arguments anew, and tells hooks that nobody set, which takes
longer than many a kernel; a training step of VMamba-T has more than 200 launches. So a kernel that was launched once is
launched directly from then on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

#: Whether functions that are jitted from now on are interpreted on the CPU (``TRITON_INTERPRET=1``).
INTERPRETED = bool(triton.knobs.runtime.interpret)

#: Whether this Triton launches as those did whose `JITFunction.run` was read for this.
_KNOWN = (3, 6) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 8)


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


class _Compiled(NamedTuple):
    """A compiled kernel on its device, and the values of its constants, which launchers are given too."""

    kernel: Any
    constants: tuple[object, ...]

    def launch(self, device: int, programs: int, arguments: tuple[Any, ...]) -> None:
        """What `triton.JITFunction.run` ends with."""
        kernel, stream = self.kernel, driver.active.get_current_stream(device)
        packed = kernel.packed_metadata
        kernel.run(programs, 1, 1, stream, kernel.function, packed, None, None, None, *arguments, *self.constants)


class Kernel:
    """A Triton function that is compiled for its constants and dtypes only: ``kernel[(programs,)](*arguments, …)``.

    Sizes, strides and alignments make no new kernels. Tensors, or None, come first, then numbers; constants by name.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        arguments = [one.name for one in parameters if "constexpr" not in str(one.annotation)]
        assert arguments == [one.name for one in parameters][: len(arguments)], "constants come last"
        self._constants = [one.name for one in parameters if one.name not in arguments]
        self.function: Any = triton.jit(function, do_not_specialize=arguments)
        self.__doc__ = function.__doc__
        self._tensors: dict[tuple[type, ...], int] = {}
        self._compiled: dict[object, _Compiled] = {}

    def bound(self, programs: int, *numbers: float, **constants: Any) -> Bound:
        """Itself with all but its tensors, for callers that keep it for calls of the same sizes."""
        return Bound(self, programs, numbers, constants)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., object]:
        return partial(self.launch if _collected is None else self._collect, grid)

    def launch(self, grid: tuple[int], *arguments: Any, **constants: Any) -> _Compiled | None:
        """Launch; return what was launched where it serves for all launches of this kind."""
        if _goes_through_triton(self.function):
            self.function[grid](*arguments, **constants)
            return None
        device = driver.active.get_current_device()
        key = self._key(device, arguments, constants)
        found = self._compiled.get(key)
        if found is None:
            kernel = self.function[grid](*arguments, **constants)
            if key is not None and isinstance(kernel, triton.compiler.CompiledKernel):
                found = self._compiled[key] = _Compiled(kernel, tuple(constants[name] for name in self._constants))
            return found
        found.launch(device, grid[0], arguments)
        return found

    def _key(self, device: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> object:
        """Equal for launches that the same compiled kernel serves; None where Triton must tell."""
        types = tuple(map(type, arguments))
        tensors = self._tensors.get(types)
        if tensors is None:
            tensors = self._tensors[types] = next((i for i, t in enumerate(types) if t in (int, float)), len(types))
        numbers = arguments[tensors:]
        # Numbers that need 64 bits make kernels of their own.
        if not numbers or min(numbers) < -(2**31) or max(numbers) >= 2**31:
            return None
        dtypes = tuple([None if t is None else t.dtype for t in arguments[:tensors]])
        return device, types, dtypes, tuple(constants.items())

    def _collect(self, grid: tuple[int], *arguments: object, **constants: object) -> None:
        assert _collected is not None
        kinds = tuple(one.dtype if isinstance(one, Tensor) else one for one in arguments)
        _collected.append(Launch(self.function, kinds, constants))


class Bound:
    """A kernel with all but its tensors, which must come in the same layout each time: see `Kernel.bound`."""

    def __init__(self, kernel: Kernel, programs: int, numbers: tuple[float, ...], constants: dict[str, Any]) -> None:
        self._kernel, self._programs, self._numbers, self._constants = kernel, programs, numbers, constants
        self._compiled: dict[object, _Compiled] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch it."""
        if _collected is not None or _goes_through_triton(self._kernel.function):
            self._kernel[(self._programs,)](*tensors, *self._numbers, **self._constants)
            return
        device = driver.active.get_current_device()
        key = device, *[None if t is None else t.dtype for t in tensors]
        found = self._compiled.get(key)
        if found is not None:
            found.launch(device, self._programs, (*tensors, *self._numbers))
            return
        found = self._kernel.launch((self._programs,), *tensors, *self._numbers, **self._constants)
        if found is not None:
            self._compiled[key] = found


def _goes_through_triton(function: Any) -> bool:
    """Whether launches are interpreted, watched by a profiler or a debugger, or unlike what this module knows."""
    if INTERPRETED or not _KNOWN:
        return True
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        (enter is not None and getattr(enter, "calls", True))
        or (leave is not None and getattr(leave, "calls", True))
        or function.pre_run_hooks
        or runtime.debug
        or triton.knobs.compilation.instrumentation_mode
        or runtime.add_stages_inspection_hook is not None
    )


#: Decorates the kernels.
kernel = Kernel


def capped(registers: int) -> dict[str, int]:
    """The option by which a lane gets so many registers at most, 0 for as many as the compiler likes, where it can."""
    can = torch.version.hip is None and getattr(torch.version, "xpu", None) is None  # it is NVIDIA's
    return {"maxnreg": registers} if registers and can else {}


@contextmanager
def collecting() -> Iterator[list[Launch]]:
    """Collect what is launched inside the ``with`` block instead of launching it. Not for several threads at once."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before
