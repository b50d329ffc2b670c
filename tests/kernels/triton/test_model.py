"""A training step of a whole model, the way it goes on a GPU: compiled as one graph, with the kernels as operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from triton_tools import DEVICE, assert_near, random

import vmamba
from vmamba.functional import gpu

kernels = pytest.importorskip("vmamba.kernels.triton.layers.depthwise")
jit = pytest.importorskip("vmamba.kernels.triton.jit")


@pytest.mark.long
@pytest.mark.skipif(
    not jit.INTERPRETED and not torch.cuda.is_available(),
    reason="the kernels were imported before the interpreter was asked for",
)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_is_one_graph(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DEVICE", DEVICE)
    monkeypatch.setattr(gpu, "_there", lambda: True)
    graphs: list[list[str]] = []

    def look(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", dims=[8, 16], depths=[1, 1], num_classes=3, drop_path_rate=0.0).to(
        DEVICE
    )
    x = random(2, 3, 16, 16)

    def step(images: Tensor) -> Tensor:
        return model(images).float().logsumexp(-1).sum()

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = run(x)
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    torch._dynamo.reset()
    got = gradients(torch.compile(step, backend=aot_autograd(fw_compiler=look, bw_compiler=look), fullgraph=True))
    forward, backward = graphs
    assert forward.count("vmamba.depthwise3x3.default") == 2
    assert backward.count("vmamba.depthwise3x3_backward.default") == 2
    assert not any("clone" in name for name in backward)
    assert not any("silu" in name or "sigmoid" in name for name in forward)  # it is in the convolution
    for g, w in zip(got, gradients(step), strict=True):
        assert_near("a gradient", g, w.double(), 0.1 if autocast else 1e-4)
