"""Here the GPU's kernels run on the CPU, stepped through by Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Read when a kernel is defined: before any module with one is imported.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``"oflex"`` on CPU tensors is what it is on a GPU's, and small maps are cut into several chunks, as large ones are."""
    from vmamba.kernels.triton import plan
    from vmamba.scan import schema

    monkeypatch.setitem(schema._KERNELS, "cpu", schema._of_gpu)
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
