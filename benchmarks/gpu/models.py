"""Whole models beside timm's of their size: images a second, training and inference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from timing import Row, call_time
from torch import nn
from torch.nn import functional as F

import vmamba

OURS = "vmamba_tiny_s1l8"
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny")


def made(name: str, size: int) -> nn.Module:
    import timm

    if name.startswith("vmamba"):
        return vmamba.create_model(name).cuda()
    options = {"img_size": size} if name.startswith("swin") else {}
    model: nn.Module = timm.create_model(name, **options).cuda()
    return model


def step_of(model: nn.Module, batch: int, size: int, dtype: torch.dtype, how: str, training: bool) -> Any:
    images = torch.randn(batch, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device="cuda")
    call: Any = model if how in ("eager", "graph") else torch.compile(model, mode=None if how == "compile" else how)

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32), torch.set_grad_enabled(training):
            out = call(images)
            if training:
                loss = F.cross_entropy(out, labels)
        if training:
            loss.backward()
            for p in model.parameters():
                p.grad = None

    if how != "graph":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def models(names: list[str], hows: list[str], dtypes: list[torch.dtype], cases: list[tuple[int, int]]) -> Iterator[Row]:
    """A row for each model, batch and image size, dtype, way to run it, and of inference and training."""
    torch.set_float32_matmul_precision("high")  # TF32 products for all models alike
    torch.backends.cudnn.allow_tf32 = True
    for name in names:
        for batch, size in cases:
            for dtype in dtypes:
                for how in hows:
                    for training in (False, True):
                        torch.compiler.reset()
                        torch.cuda.empty_cache()
                        model = made(name, size).train(training)
                        torch.cuda.reset_peak_memory_stats()
                        row: Row = {"part": "models", "model": name, "batch": batch, "size": size, "how": how}
                        row |= {"dtype": str(dtype)[6:], "training": training}
                        try:
                            begun = time.monotonic()
                            step = step_of(model, batch, size, dtype, how, training)
                            step()
                            torch.cuda.synchronize()
                            row["first s"] = time.monotonic() - begun
                            row["ms"] = call_time(step, 1.5) / 1e3
                            row["images/s"] = 1e3 * batch / row["ms"]
                        except Exception as error:  # one that fails is a result too
                            row["problem"] = f"{type(error).__name__}: {error}"[:300]
                        row["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
                        del model
                        yield row
