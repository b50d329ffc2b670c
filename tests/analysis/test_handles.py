"""The tables for fvcore and ptflops, called as those packages call them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils import _python_dispatch

import vmamba
from vmamba.analysis.handles import fvcore_handles, ptflops_hooks
from vmamba.scan.dispatch import choose
from vmamba.scan.work import scan_operations

pytestmark = pytest.mark.skipif(
    choose(None, "ss2d_scan", "cpu", torch.float32) != "oflex",
    reason="needs the compiled kernels, whose operator shows",
)
MODEL = {"dims": [8, 16], "depths": [1, 1], "num_classes": 3}


@pytest.fixture
def expected() -> tuple[vmamba.VSSM, torch.Tensor, int]:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", **MODEL).eval()
    found = 0
    for side, layer in zip((8, 4), model.layers, strict=True):
        op = layer.blocks[0].op
        elements = 4 * op.d_inner * side * side
        found += elements * op.dt_rank + scan_operations(elements, op.d_state)
    return model, torch.randn(1, 3, 32, 32), found


def test_fvcore_counts_the_scans_of_a_traced_graph(expected: tuple[vmamba.VSSM, torch.Tensor, int]) -> None:
    model, x, operations = expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph is for this size, and traced as fvcore does it
        graph = torch.jit.trace(model, x, check_trace=False).inlined_graph
    handles = fvcore_handles()
    nodes = [node for node in graph.nodes() if node.kind() in handles]
    assert {node.kind() for node in nodes} == {"vmamba::ss2d_scan"}
    assert sum(handles[node.kind()](list(node.inputs()), list(node.outputs())) for node in nodes) == operations


def test_ptflops_counts_the_scans_that_it_sees(expected: tuple[vmamba.VSSM, torch.Tensor, int]) -> None:
    model, x, operations = expected
    hooks, found = ptflops_hooks(), []

    class Counter(_python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in hooks:
                found.append(hooks[func.overloadpacket](args, out))
            return out

    with Counter(), torch.no_grad():
        model(x)
    assert len(found) == 2
    assert sum(found) == operations
