"""The processes that measure or predict together: started by ``torchrun`` or ``accelerate launch``, or one alone.

Each takes whole batches in turn, so that nothing is padded and no image is seen twice, and sends what it found to the
main process in rounds; that one alone prints and writes. Nothing in a forward pass is exchanged, so that the model
needs no wrapping.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from vmamba.errors import VMambaError

Made = TypeVar("Made")


class Processes:
    """One of ``count`` processes.

    Attributes:
        index: which, from 0; 0 is the main one.
        count: how many.
    """

    def __init__(self, index: int = 0, count: int = 1, local_index: int = 0, group: Any = None) -> None:
        self.index = index
        self.count = count
        self.local_index = local_index
        self._group = group  # of gloo, which takes objects from the CPU whatever the device is

    @property
    def is_main(self) -> bool:
        """Whether this one prints and writes."""
        return self.index == 0

    def device(self, device: torch.device) -> torch.device:
        """``device``, or where it is any CUDA or XPU device and several processes share a machine, this one's own."""
        if self.count > 1 and device.index is None and device.type in ("cuda", "xpu"):
            return torch.device(device.type, self.local_index)
        return device

    def from_main(self, make: Callable[[], Made]) -> Made:
        """What ``make`` returns in the main process, in all of them; a mistake that it raises is raised in all."""
        if self.count == 1:
            return make()
        broadcast = torch.distributed.broadcast_object_list
        return made_by_one(make, self.is_main, lambda made: broadcast(made, src=0, group=self._group))

    def main_first(self, make: Callable[[], Made]) -> Made:
        """What ``make`` returns, called first in each machine's first process, as for what is fetched into a cache."""
        if self.count == 1:
            return make()
        if self.local_index == 0:
            made = make()
        torch.distributed.barrier(self._group)
        if self.local_index != 0:
            made = make()
        return made

    def batches(self, count: int, batch_size: int, start: int = 0) -> list[list[int]]:
        """The batches of indices from ``start`` up to ``count`` that are this process's; maybe fewer than others'."""
        size, step = batch_size, batch_size * self.count
        own = range(start + self.index * size, count, step)
        return [list(range(first, min(first + size, count))) for first in own]

    def rounds(self, count: int, batch_size: int, start: int = 0) -> int:
        """How many batches the process with the most has."""
        return -(-max(count - start, 0) // (batch_size * self.count))

    def gather(self, found: Made) -> Sequence[Made]:
        """What all processes found, in their order, in the main one; in the others nothing. All must call it."""
        if self.count == 1:
            return [found]
        gathered: list[Any] | None = [None] * self.count if self.is_main else None
        torch.distributed.gather_object(found, gathered, dst=0, group=self._group)
        return gathered or []


def made_by_one(make: Callable[[], Made], is_main: bool, broadcast: Callable[[list[Any]], Any]) -> Made:
    """What ``make`` returns in the main process, in every process; a mistake that it raises is raised in every one.

    Args:
        make: called in the main process alone; what it returns is pickled.
        is_main: whether this is that process.
        broadcast: fills a list with the main process's objects, in place.
    """
    made: list[Any] = [None, None]
    if is_main:
        try:
            made[0] = make()
        except VMambaError as error:
            made[1] = error
    broadcast(made)
    value, mistake = made
    if mistake is not None:
        raise mistake
    result: Made = value
    return result


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes of which this is one, by the environment that their launcher sets.

    Args:
        device: as in the configuration; for ``cpu`` they talk by gloo alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    from accelerate import PartialState

    fresh = not PartialState._shared_state
    joined = torch.distributed.is_initialized()
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if not joined:
        # Not at the end of this call: a process that came to its next one first would meet the old group's store.
        atexit.register(_leave)
    group: Any = torch.distributed.new_group(backend="gloo")
    try:
        yield Processes(state.process_index, state.num_processes, state.local_process_index, group)
        torch.distributed.barrier(group)  # none leaves while another still has something to hear from it
    finally:
        torch.distributed.destroy_process_group(group)
        if fresh:
            PartialState._reset_state()


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
