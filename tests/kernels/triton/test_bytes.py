"""How many bytes the fused forward moves: what each program touches first, counted by the interpreter.

Programs of a launch are alike, so one of each is run and counted. Memory that a program touches again is in its cache.
Every program reads its parameters, low-rank steps, B and C anew here; on a GPU programs beside each other find them in
the second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import vmamba
from vmamba.kernels.triton.jit import Kernel
from vmamba.kernels.triton.scans import launch, plan


class Counter:
    """Bytes that programs read and write, each once a program, for whole launches."""

    def __init__(self) -> None:
        self.total = 0
        self._programs = 0
        self._read: set[int] = set()
        self._written: set[int] = set()

    def begin(self, programs: int) -> None:
        self.end()
        self._programs = programs

    def end(self) -> None:
        self.total += self._programs * (len(self._read) + len(self._written))
        self._read, self._written = set(), set()

    def touch(self, pointers: Any, mask: Any, *, store: bool) -> None:
        size = pointers.dtype.scalar.element_ty.primitive_bitwidth // 8
        where = np.unique(pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)])
        found = {int(one) + byte for one in where for byte in range(size)}
        if store:
            self._written |= found
        else:
            self._read |= found - self._written


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    from triton.runtime.interpreter import InterpreterBuilder

    count = Counter()

    def counted(name: str, *, store: bool) -> Callable[..., Any]:
        original = getattr(InterpreterBuilder, name)

        def access(self: Any, pointers: Any, *others: Any, **options: Any) -> Any:
            count.touch(pointers, others[1 if store else 0], store=store)
            return original(self, pointers, *others, **options)

        return access

    def one_program(self: Kernel, grid: tuple[int]) -> Callable[..., None]:
        def run(*arguments: Any, **constants: Any) -> None:
            count.begin(grid[0])
            self.function[(1,)](*arguments, **constants)

        return run

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted("create_masked_load", store=False))
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted("create_masked_store", store=True))
    monkeypatch.setattr(Kernel, "__getitem__", one_program)
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    return count


def unfused(b: int, side: int, d: int, r: int) -> int:
    """Cross-scan, step projection, scan and cross-merge as operations of their own, 16-bit inputs, float32 outputs."""
    places, row = b * side * side, r + 2
    scan = (1 + 4) * d * 2  # x to four sequences
    projection = 4 * (2 * row + row + d) * 2  # x_dbl to sequences; low-rank steps in, steps out
    selective = 4 * (2 * d + 2) * 2 + 4 * d * 4  # u, δ, B, C in; y out in float32
    merge = 4 * d * 4 + d * 4
    return places * (scan + projection + selective + merge)


@pytest.mark.parametrize(("sizes", "most"), [((8, 56, 96, 6), 0.43), ((8, 14, 384, 24), 0.80)])
def test_fused_forward_moves_less(
    sizes: tuple[int, int, int, int], most: float, interpreted: None, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, side, d, r = sizes
    monkeypatch.setattr(plan, "_LEAST_PLACES", 49)
    plan.plan.cache_clear()
    x = torch.zeros(b, side, side, d, dtype=torch.bfloat16)
    x_dbl = torch.zeros(b, side, side, 4, r + 2, dtype=torch.bfloat16)
    with torch.no_grad():
        vmamba.ss2d_scan(
            x, x_dbl, torch.zeros(4, d, r), torch.zeros(4, d), -torch.ones(4 * d, 1), torch.ones(4 * d), backend="oflex"
        )
    counter.end()
    plan.plan.cache_clear()
    assert 0.2 < counter.total / unfused(*sizes) <= most
