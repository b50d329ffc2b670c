"""What an epoch's training cost, besides what it learnt: waiting for data, memory, and how large the gradients were."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")

#: Bytes in a mebibyte.
MIB = 2**20


@dataclass(frozen=True)
class Readings:
    """Of one epoch's training.

    Attributes:
        grad_norm: mean 2-norm of the gradient before clipping; updates in which it is not finite are left out.
        memory_mib: peak memory, MiB, of the process that needed most: what torch allocated on a CUDA device in the
            epoch, else the process's resident memory since its start; None where the system does not tell.
        data_wait: share of the time in which the loop waited for the next batch, mean over processes; 0 to 1.
    """

    grad_norm: float
    memory_mib: float | None
    data_wait: float


class Gauges:
    """Takes an epoch's `Readings`. Nothing waits for the device before `read`.

    Args:
        accelerator: the processes and their device.
        norms: `norms` of the same epoch's earlier part, if it was broken off.
    """

    def __init__(self, accelerator: Any, norms: Tensor | None = None) -> None:
        self.accelerator = accelerator
        #: On the device: the sum of the gradients' norms, and how many.
        self.norms = torch.zeros(2, device=accelerator.device) if norms is None else norms.to(accelerator.device)
        self.waited = 0.0  # seconds
        self._started = time.perf_counter()
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each is waited for is counted."""
        rest = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(rest)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield batch

    def norm(self, value: Tensor) -> None:
        """Note the norm of an update's gradient, a scalar on the device."""
        value = value.detach().float().reshape(())
        finite = torch.isfinite(value)
        self.norms = self.norms + torch.stack([torch.where(finite, value, torch.zeros_like(value)), finite.float()])

    def read(self) -> Readings:
        """The readings so far. Call it in every process; it waits for the device."""
        memory = peak_memory(self.accelerator.device)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        mine = torch.tensor([[self.waited / seconds, memory or 0.0]], device=self.accelerator.device)
        waits, memories = self.accelerator.gather(mine).T.tolist()
        total, count = self.norms.tolist()
        return Readings(total / max(count, 1.0), max(memories) or None, sum(waits) / len(waits))


def peak_memory(device: torch.device) -> float | None:
    """MiB, as `Readings.memory_mib`, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere
