"""Whole models on a GPU: the CPU's numbers, training steps in every surrounding, compiled graphs, CUDA graphs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import vmamba
from vmamba.kernels.triton import machine_obstacle

if machine_obstacle() is not None:
    pytest.skip(f"needs a GPU: {machine_obstacle()}", allow_module_level=True)

Batch = tuple[Tensor, Tensor]


def step(
    model: Callable[[Tensor], Tensor], parameters: Iterator[Tensor], images: Tensor, labels: Tensor
) -> list[Tensor]:
    loss = F.cross_entropy(model(images), labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(parameters))]


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-3) -> None:
    """Each within a tolerance of the scale of all."""
    scale = max(float(t.abs().max()) for t in wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.isfinite().all()
        assert (got - want).abs().max() <= tolerance * scale


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Without TF32, as the numbers that are compared are."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_nano", drop_path_rate=0.0).cuda()


@pytest.fixture
def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 64, 64, generator=draw).cuda(), torch.randint(10, (4,), generator=draw).cuda()


@pytest.mark.parametrize("name", ["vmamba_nano", "vmamba_tiny_s1l8", "vanilla_vmamba_tiny"])
def test_the_numbers_of_a_cpu(name: str) -> None:
    torch.manual_seed(0)
    on_cpu = vmamba.create_model(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), vmamba.recorded_runs() as runs:
        want, found = on_cpu(images), copy.deepcopy(on_cpu).cuda()(images.cuda()).cpu()
    assert {run.backend for run in runs if "triton" in run.detail} == {"oflex"}
    close([found], [want])


def test_a_step_is_that_of_plain_operations(model: nn.Module, batch: Batch) -> None:
    with vmamba.backend("torch"):
        wanted = step(model, model.parameters(), *batch)
    with vmamba.backend("oflex"), vmamba.recorded_runs() as runs:
        found = step(model, model.parameters(), *batch)
    assert all("triton" in run.detail for run in runs)
    close(found, wanted)


def test_a_step_is_the_same_bits_twice(model: nn.Module, batch: Batch) -> None:
    # Ours are; the patch embedding's convolutions are asked to be.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = (step(model, model.parameters(), *batch) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
    wanted = step(model, model.parameters(), *batch)
    with torch.autocast("cuda", dtype):
        found = step(model, model.parameters(), *batch)
    close(found, wanted, 5e-2)


def test_a_compiled_step_is_the_same(model: nn.Module, batch: Batch) -> None:
    wanted = step(model, model.parameters(), *batch)
    close(step(torch.compile(model, fullgraph=True), model.parameters(), *batch), wanted)  # type: ignore[arg-type]


def test_checkpointing_gives_the_same(model: nn.Module, batch: Batch) -> None:
    wanted = step(model, model.parameters(), *batch)
    found = step(lambda x: checkpoint(model, x, use_reentrant=False), model.parameters(), *batch)
    close(found, wanted, 1e-5)


def test_a_cuda_graph_gives_the_same(model: nn.Module, batch: Batch) -> None:
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


def test_a_cuda_graph_of_a_training_step(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    wanted = step(model, model.parameters(), images, labels)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(model, model.parameters(), images, labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(model, model.parameters(), images, labels)
    graph.replay()
    close(found, wanted)


def test_threads_as_data_parallel_has_them(model: nn.Module, batch: Batch) -> None:
    wanted = step(model, model.parameters(), *batch)
    copies = [copy.deepcopy(model) for _ in range(3)]
    found: list[list[Tensor]] = [[] for _ in copies]

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[i] = step(copies[i], copies[i].parameters(), *batch)
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(copies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        close(one, wanted)


def test_data_parallel_over_processes(model: nn.Module, batch: Batch, tmp_path: object) -> None:
    wanted = step(model, model.parameters(), *batch)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=[0])
        F.cross_entropy(wrapped(batch[0]), batch[1]).backward()
        found = [p.grad for p in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    close(found, wanted[1:])  # type: ignore[arg-type]
