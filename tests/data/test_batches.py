"""A loader's processes that die: one error where a batch is asked for, none anywhere else."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from threading import Timer
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmamba._torch import loading_iterators
from vmamba.data.batches import batches_of
from vmamba.errors import LoadingError


class Numbers(Dataset[Tensor]):
    """Ten numbers; the process that is asked for ``fatal`` dies, one that is asked for ``broken`` raises."""

    def __init__(self, fatal: int = -1, broken: int = -1, error: type[Exception] = RuntimeError) -> None:
        self.fatal, self.broken, self.error = fatal, broken, error

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.broken:
            raise self.error("of the samples'")
        return torch.tensor(index)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    gc.collect()  # an error's traceback holds the loader
    assert set(multiprocessing.active_children()) <= before


def loader(processes: int, **fault: Any) -> DataLoader[Tensor]:
    return DataLoader(Numbers(**fault), batch_size=2, num_workers=processes, prefetch_factor=1 if processes else None)


@pytest.mark.parametrize("processes", [0, 2])
def test_all_batches_in_order(processes: int) -> None:
    assert torch.cat(list(batches_of(loader(processes)))).tolist() == list(range(10))


def test_a_process_that_dies_while_a_batch_is_waited_for() -> None:
    with pytest.raises(LoadingError, match=r"a process that loads images is gone .*give fewer num_workers"):
        list(batches_of(loader(2, fatal=5)))


def test_a_process_that_dies_meanwhile_interrupts_nothing() -> None:
    with closing(batches_of(loader(1))) as batches:
        next(batches)
        (child,) = multiprocessing.active_children()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        sum(1 for _ in range(100))  # Python runs signal's handlers between two such steps: PyTorch's would raise here
        with pytest.raises(LoadingError, match="is gone"):
            next(batches)


def test_the_next_loader_does_not_hear_of_the_last_ones() -> None:
    with pytest.raises(LoadingError):
        list(batches_of(loader(1, fatal=3)))
    assert len(list(batches_of(loader(1)))) == 5


@pytest.mark.parametrize("ends", [True, False])
def test_a_connection_that_breaks_before_its_process_has_ended(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(queue: object, **_: object) -> None:
        if ends:
            Timer(0.1, multiprocessing.active_children()[0].kill).start()
        raise ConnectionResetError("reset by peer")

    batches = batches_of(loader(1))
    next(batches)
    monkeypatch.setattr("multiprocessing.queues.Queue.get", broken)
    with pytest.raises(LoadingError if ends else ConnectionResetError, match=r"reset by peer|is killed"):
        next(batches)


@pytest.mark.parametrize("error", [RuntimeError, OSError])
@pytest.mark.parametrize("processes", [0, 1])
def test_other_errors_are_the_samples(processes: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="of the samples'"):
        list(batches_of(loader(processes, broken=4, error=error)))


def test_a_process_that_dies_with_the_loaders_lock_in_its_hand() -> None:
    batches = batches_of(loader(2))
    next(batches)
    ((iterator, processes),) = [(it, of) for it, of in loading_iterators() if of[0].is_alive()]
    lock = iterator._workers_done_event._cond  # type: ignore[attr-defined]
    lock.acquire()  # as a process does before it looks whether it is to end
    processes[0].kill()
    with pytest.raises(LoadingError, match="is gone"):
        list(batches)
    batches.close()
    del iterator, batches  # which would wait for the lock, for good
