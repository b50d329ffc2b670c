"""What the GPU kernels were compiled to, counted without a GPU: registers, spills, instructions of the main loop.

Triton compiles for a named GPU on any machine. From the instructions and the bytes of a launch follows the time that it
can take at best, which says where the next microsecond is to be found; the GPU itself has the last word.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import BackendError
from vmamba.kernels.triton.jit import Launch

_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")
_BRANCH = re.compile(r"BRA.*?(0x[0-9a-f]+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_WARP = 32


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled.

    Attributes:
        name: of the function.
        registers: of a thread.
        spilled: bytes of a thread that did not fit into registers.
        shared: bytes of shared memory of a program.
        instructions: of the main loop, for each place and channel of a warp's lanes.
        kinds: how many of each kind there are in that loop, for each place and channel.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    instructions: float
    kinds: dict[str, float]


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile what ``launch`` asks for, for an NVIDIA GPU of a compute capability such as 80 or 90.

    Raises:
        BackendError: Triton brings no ``cuobjdump`` along.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants = launch.function, dict(launch.constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in constants}
    signature: dict[str, str] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    for i, (name, value) in enumerate(zip(function.arg_names, launch.arguments, strict=False)):
        signature[name] = _type_of(value)
        if value is None:
            fixed[(i,)] = None
    for name, value in constants.items():
        signature[name] = "constexpr"
        fixed[(function.arg_names.index(name),)] = value
    source = ASTSource(fn=function, signature=signature, constexprs=fixed, attrs={})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=options)
    elements = constants["BC"] * constants.get("BT", 1) / (_WARP * options.get("num_warps", 1))
    return _measure(function.__name__, compiled.asm["cubin"], compiled.metadata.shared, elements)


def _type_of(value: object) -> str:
    if value is None:
        return "constexpr"
    if isinstance(value, torch.dtype):
        return _POINTERS[value]
    assert isinstance(value, int)
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@functools.cache
def _tool() -> Path:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        raise BackendError(f"counting instructions needs cuobjdump, which this Triton does not bring along ({tool})")
    return tool


def _measure(name: str, binary: bytes, shared: int, elements: float) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(binary)

        def dump(what: str) -> str:
            return subprocess.run([_tool(), what, file], capture_output=True, text=True, check=True).stdout

        usage = _USAGE.search(dump("-res-usage"))
        assert usage is not None
        registers, stack, _, local = map(int, usage.groups())
        found = filter(None, map(_INSTRUCTION.match, dump("-sass").splitlines()))
        code = [(int(one[1], 16), one[2]) for one in found]
    loop = _main_loop(code)
    kinds = Counter(_kind(text) for text in loop)
    return Compiled(
        name,
        registers,
        stack + local,
        shared,
        len(loop) / elements,
        {kind: count / elements for kind, count in kinds.items()},
    )


def _main_loop(code: list[tuple[int, str]]) -> list[str]:
    """The innermost loop with the most instructions."""
    loops = []
    for address, text in code:
        branch = _BRANCH.search(text)
        if branch and int(branch[1], 16) < address:
            loops.append((int(branch[1], 16), address))
    inner = [
        one for one in loops if not any(other != one and one[0] <= other[0] and other[1] <= one[1] for other in loops)
    ]
    first, last = max(inner, key=lambda one: one[1] - one[0], default=(0, -1))
    return [text for address, text in code if first <= address <= last]


def _kind(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]
