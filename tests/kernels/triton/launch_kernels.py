"""Launch a small kernel without a GPU, through a driver that notes what it is told, and print what the launches were.

A program of its own: in the tests' process kernels are interpreted.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vmamba.kernels.triton.jit import collecting, kernel

launched: list[tuple[Any, ...]] = []


class Launcher:
    """In place of the C function that Triton makes for each kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.types = [type for type in source.signature.values() if type != "constexpr"]

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: int,
        packed: Any,
        told: Any,
        enter: Any,
        leave: Any,
        *args: Any,
    ) -> None:
        if getattr(enter, "calls", False):
            enter(told)
        launched.append((self.types, (x, y, z), stream, packed, args))


class Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return 1, 2, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


class Driver:
    device, stream = 0, 7

    def __init__(self) -> None:
        self.utils, self.launcher_cls = Utils(), Launcher
        self.get_current_device = lambda: self.device
        self.get_current_stream = lambda device: self.stream + device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@kernel
def scale(x, y, count, factor, SAVE: tl.constexpr, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    found = tl.load(x + c, c < count, 0.0) * factor
    if SAVE:
        tl.store(y + c, found, c < count)


through_triton = 0
run = scale.function.run


def counted(*arguments: Any, **options: Any) -> Any:
    global through_triton
    through_triton += 1
    return run(*arguments, **options)


scale.function.run = counted
driver.set_active(Driver())
x, y, half = torch.ones(8), torch.ones(8), torch.ones(8, dtype=torch.float16)
results: dict[str, Any] = {}


def launch(name: str, *arguments: Any, grid: tuple[int] = (3,), **constants: Any) -> None:
    """Twice: how often Triton was asked, and whether both launches were the same."""
    before = through_triton
    del launched[:]
    for _ in range(2):
        scale[grid](*arguments, **(constants or {"SAVE": True, "BC": 8, "num_warps": 2}))
    first, second = launched
    same = first[:4] == second[:4] and all(a is b or a == b for a, b in zip(first[4], second[4], strict=True))
    results[name] = {"asked": through_triton - before, "same": same, "types": first[0], "grid": first[1]}


launch("first", x, y, 8, 2.0)
launch("other numbers", x[1:], y, 1, 3.0, grid=(5,))
launch("parameter", torch.nn.Parameter(x), y, 8, 2.0)
launch("half", half, y, 8, 2.0)
launch("none", x, None, 8, 2.0, SAVE=False, BC=8)
launch("wide", x, y, 2**31, 2.0)
launch("negative", x, y, -(2**31), 2.0)
launch("integer factor", x, y, 8, 2)
launch("constants", x, y, 8, 2.0, SAVE=True, BC=16, num_warps=2)
launch("warps", x, y, 8, 2.0, SAVE=True, BC=8, num_warps=4)
bound = scale.bound(4, 8, 2.0, SAVE=True, BC=8, num_warps=2)
for name, tensors in (("bound", (x, y)), ("bound half", (half, half)), ("bound parameter", (torch.nn.Parameter(x), y))):
    del launched[:]
    before = through_triton
    bound(*tensors)
    bound(*tensors)
    scale[(4,)](*tensors, 8, 2.0, SAVE=True, BC=8, num_warps=2)
    same = launched[0][:4] == launched[1][:4] == launched[2][:4]
    same &= all(a is b is c or a == b == c for a, b, c in zip(*(one[4] for one in launched), strict=True))
    results[name] = {"asked": through_triton - before, "same": same, "types": launched[0][0]}
Driver.device = 1
launch("device", x, y, 8, 2.0)
Driver.device, Driver.stream = 0, 9
launch("stream", x, y, 8, 2.0)
results["stream"]["stream"] = launched[0][2]

seen: list[object] = []
hook = triton.knobs.runtime.launch_enter_hook
hook.add(lambda told: seen.append(told.get()["name"]))
launch("hook", x, y, 8, 2.0)
results["hook"]["seen"] = seen
del hook.calls[:]

del launched[:]
with collecting() as collected:
    scale[(3,)](x, y, 8, 2.0, SAVE=True, BC=8, num_warps=2)
    bound(x, y)
results["collected"] = [len(collected), len(launched)]
print(json.dumps(results))
