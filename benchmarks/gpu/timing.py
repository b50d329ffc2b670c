"""How long things take on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

Row = dict[str, Any]


def kernel_time(run: Callable[[], object], calls: int = 3, replays: int = 7) -> float:
    """Microseconds of a call's kernels: the median over replays of a CUDA graph of some calls, without the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()  # kernels are compiled and memory found before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    graph.replay()
    return median(_events(graph.replay) for _ in range(replays)) / calls


def call_time(run: Callable[[], object], seconds: float = 2.0) -> float:
    """Microseconds of a call as a program sees it: the median of single calls after warm-up."""
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        times.append(_events(run))
    return median(times)


def _events(run: Callable[[], object]) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    last.synchronize()
    return 1e3 * float(first.elapsed_time(last))


def copy_bandwidth() -> float:
    """Bytes a second, read and written, that a kernel moves on this card.

    Not `Tensor.copy_`, which a CUDA graph gives to the copy engine: on an H200 that reached 2.75 TB/s, kernels 3.7.
    """
    source = torch.empty(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (kernel_time(lambda: torch.neg(source, out=target)) * 1e-6)
