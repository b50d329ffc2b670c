"""Here the GPU's kernels run on the CPU, stepped through by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def quick_calls() -> None:
    """Each function that a kernel calls patches Triton's language anew, for 10 ms: once a launch is enough."""
    from triton.runtime import interpreter

    patched: set[int] = set()
    launch = interpreter.GridExecutor.__call__

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in patched:
            patched.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = launch_afresh
    interpreter.InterpretedFunction.__call__ = call


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``"oflex"`` on CPU tensors is what it is on a GPU's, and small maps are cut into chunks, as large ones are."""
    from vmamba.kernels.triton.scans import plan
    from vmamba.scan.schema import kernels as schema

    monkeypatch.setitem(schema.KERNELS, "cpu", schema.of_gpu)
    monkeypatch.setattr(plan, "_LEAST_PLACES", 12)
    plan.plan.cache_clear()


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """Memory that nobody wrote to holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
