"""Batches of a PyTorch loader, whose dead processes are one clear error, where a batch is asked for."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from vmamba._torch import is_loaders_handler, loading_iterators
from vmamba.errors import LoadingError

Batch = TypeVar("Batch")

_REPORTED_WITHIN = 1.0  # seconds


def batches_of(loader: Iterable[Batch]) -> Generator[Batch, None, None]:
    """The batches of ``loader``, a ``DataLoader`` or what wraps one.

    Close it to end the loader's processes before its last batch.

    Raises:
        LoadingError: one of its processes died.
    """
    _deaths.noted = None
    rest = iter(loader)
    try:
        while True:
            try:
                batch = _deaths.next_of(rest)
            except StopIteration:
                return
            except (_Death, RuntimeError, OSError, EOFError) as error:
                if not _tells_of_a_death(error):
                    raise
                _abandon_broken()
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise LoadingError(
                    f"a process that loads images is gone ({said[0].strip()}). Mostly the memory ran out: give fewer "
                    "num_workers"
                ) from None
            yield batch
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            close()


def _tells_of_a_death(error: BaseException) -> bool:
    if isinstance(error, _Death):
        return True
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # What a dying process had promised to send cannot be fetched. The system closes its connections before it reports
    # its end, which comes a moment later. Or else the error is the samples' own.
    loaders = _in_use()
    end = time.monotonic() + _REPORTED_WITHIN
    while loaders and time.monotonic() < end:
        if any(process.exitcode for _, processes in loaders for process in processes):
            return True
        time.sleep(0.01)
    return False


#: Iterators of loaders that are never taken down; see `_abandon_broken`.
_abandoned: list[object] = []


def _abandon_broken() -> None:
    """End the other processes of each loader that lost one, and keep the loader's iterator for ever.

    Taken down, it would first take a lock that it shares with its processes: one that died holding it has left it
    locked, and the main process would wait for good.
    """
    for iterator, processes in _in_use():
        if any(process.exitcode for process in processes):
            _abandoned.append(iterator)
            for process in processes:
                process.kill()
                process.join()


def _in_use() -> list[tuple[object, list[Any]]]:
    return [found for found in loading_iterators() if not any(found[0] is one for one in _abandoned)]


class _Death(BaseException):
    """A process of a loader died. No ``Exception``: PyTorch would catch it, and take that same lock."""


class _Deaths:
    """Stands before PyTorch's handler of SIGCHLD, which raises in whatever the main thread is at.

    That may be the middle of a save, or a callback of the garbage collector, where errors are lost. What the handler
    says is kept for the next batch that is asked for; while one is waited for it is raised at once, since a process
    that dies as it writes leaves a message that never ends.

    Attributes:
        noted: what PyTorch's handler said last.
    """

    def __init__(self) -> None:
        self.noted: str | None = None
        self._theirs: Callable[[int, FrameType | None], object] | None = None
        self._asking = False

    def next_of(self, batches: Iterator[Batch]) -> Batch:
        """``next(batches)``, or what is known of a process that died."""
        if threading.current_thread() is not threading.main_thread():
            return next(batches)  # Python delivers no signal here
        outer, self._asking = self._asking, True
        try:
            self._stand_in_front()
            if self.noted is not None:
                raise _Death(self.noted)
            return next(batches)
        finally:
            self._asking = outer
            self._stand_in_front()  # PyTorch sets its handler with a process's first loader that has processes

    def _stand_in_front(self) -> None:
        if not hasattr(signal, "SIGCHLD"):
            return
        found = signal.getsignal(signal.SIGCHLD)
        if callable(found) and is_loaders_handler(found):
            self._theirs = found
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert self._theirs is not None
        try:
            self._theirs(number, frame)
        except RuntimeError as error:
            self.noted = str(error)
            if self._asking:
                raise _Death(self.noted) from None


_deaths = _Deaths()
