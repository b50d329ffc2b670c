"""On a GPU, where there is one: the kernels are right, reproducible, compile, and go into CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vmamba
from vmamba.kernels.triton import machine_obstacle

if machine_obstacle() is not None:
    pytest.skip(f"needs a GPU: {machine_obstacle()}", allow_module_level=True)


def step(model: torch.nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(images), labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_nano", drop_path_rate=0.0).cuda()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 64, 64, device="cuda"), torch.randint(10, (4,), device="cuda")


def test_a_step_is_that_of_plain_operations(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with vmamba.backend("torch"):
        wanted = step(model, *batch)
    with vmamba.backend("oflex"), vmamba.recorded_runs() as runs:
        found = step(model, *batch)
    assert all("triton" in run.detail for run in runs)
    scale = max(float(t.abs().max()) for t in wanted)
    for got, want in zip(found, wanted, strict=True):
        assert (got - want).abs().max() <= 1e-3 * scale


def test_none_picks_our_kernels(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with vmamba.recorded_runs() as runs:
        model(batch[0])
    assert {run.backend for run in runs} == {"oflex"}


def test_a_compiled_step_is_the_same(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    wanted = step(model, *batch)
    for got, want in zip(step(torch.compile(model, fullgraph=True), *batch), wanted, strict=True):  # type: ignore[arg-type]
        assert torch.allclose(got, want, atol=1e-3, rtol=1e-2)


def test_a_cuda_graph_gives_the_same(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model.eval()
    images = batch[0].clone()
    with torch.no_grad():
        want = model(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(images)
        images.copy_(batch[0])
        graph.replay()
    assert torch.equal(out, want)
