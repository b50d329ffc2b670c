"""What the tests of the Triton kernels share: cases, comparisons, and what the compiler makes of a kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

#: Without a GPU the kernels are interpreted, and take tensors of the CPU.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: (b, h, w, c): single pixels, lines, odd sides, and channels that fill no block.
CASES = [(1, 1, 1, 1), (1, 1, 5, 3), (2, 5, 1, 8), (1, 7, 7, 33), (2, 3, 4, 32)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def leaves(tensors: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def assert_near(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Relative to the largest element: single ones cancel, so that their own size says nothing."""
    assert got.shape == want.shape, name
    assert got.isfinite().all(), name
    error = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    assert error <= tolerance, f"{name} is off by {error:.1e} of its scale, more than {tolerance:.1e}"


class Compiled(NamedTuple):
    """What a kernel takes on a GPU. ``stack`` is bytes that it spills, ``wide_loads`` loads of more than 4 bytes."""

    registers: int
    stack: int
    shared: int
    wide_loads: int


_SCRIPT = """
import importlib, json, os, re, subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
module, name, capability, types, constants, warps, path = json.loads(sys.argv[1])
kernel = getattr(importlib.import_module("vmamba.kernels.triton.layers." + module), name).function
names = kernel.arg_names
signature = dict(zip(names, types)) | {key: "constexpr" for key in constants}
source = ASTSource(kernel, signature, {(names.index(key),): value for key, value in constants.items()})
made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 1})
open(path, "wb").write(made.asm["cubin"])
print(json.dumps(made.metadata.shared))
"""


def compiled(
    module: str, name: str, capability: int, types: list[str], constants: dict[str, object], warps: int = 4
) -> Compiled:
    """Compile a kernel of `vmamba.kernels.triton.layers` for a GPU of this compute capability, which need not be here.

    In a process of its own: here the kernels may be interpreted.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kernel.cubin"
        task = json.dumps([module, name, capability, types, constants, warps, path])
        out = subprocess.run(
            [sys.executable, "-c", _SCRIPT, task], check=True, capture_output=True, text=True, env=environment
        ).stdout
        usage, code = (
            subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return Compiled(registers, stack, int(out), len(re.findall(r"LDG\.E\.(?:64|128)", code)))


def assert_small(found: Compiled, registers: int, spilled: int) -> None:
    assert found.registers <= registers, found
    assert found.stack <= spilled, found
    assert found.shared < 48 * 1024, found
