"""What measurements need: the processor's name, waiting for a device, the most memory that a call holds at once."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def waiter(device: torch.device) -> Callable[[], None]:
    """What to call so that everything started on ``device`` has ended."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


def peak_mib(device: str, run: Callable[[], object]) -> float | None:
    """The most bytes that torch's allocator held at once while ``run`` ran, beyond what it held before, in MiB.

    What a kernel allocates by itself is not seen. None where this cannot be measured.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _cpu_peak_bytes(run) / 2**20 if kind == "cpu" else None


def _cpu_peak_bytes(run: Callable[[], object]) -> int:
    """Add up the allocator's own events: unlike a dispatch mode they show what kernels of custom operators ask for."""
    from torch.profiler import ProfilerActivity, profile

    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    raw = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((event for event in raw if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's log, with its errors about absent GPUs, off standard error."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
