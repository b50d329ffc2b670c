"""Downloads that leave one good file or none, however the network, the server or a second process behaves."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmamba.errors import CheckpointError, OutputError
from vmamba.weights.download.fingerprint import compare, record, recorded, sha256_of
from vmamba.weights.download.transfer import Interrupted, Part, transfer

_logger = logging.getLogger("vmamba")


def fetch(
    url: str,
    destination: str | Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    progress: bool | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    wait: float = 1.0,
) -> Path:
    """Download ``url`` to ``destination`` unless it is there, and verify it either way.

    The bytes go to ``<destination>.part``, which a later attempt or call goes on with where the server can resume.
    Only a complete file that passes every check is moved into place. Its SHA-256 is recorded at the first use in
    ``<destination>.sha256`` and compared at every later one, by hashing the whole file. Of several processes one
    downloads and the others wait for it.

    Args:
        url: ``http`` or ``https``.
        destination: the file; its folder is made if need be.
        sha256: the expected digest or its beginning. A name such as ``model-0123abcd.pth`` says it too.
        check: called with a new file's path before it is accepted; raises `CheckpointError` to refuse it.
        progress: show a bar on standard error; by default only on a terminal.
        timeout: seconds without a byte after which a connection counts as stalled.
        attempts: how often a transfer is tried.
        wait: seconds before the second attempt; doubled before each further one.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: the file cannot be had, or is not what it should be; says where to put one got otherwise.
        OutputError: the place cannot be written.
    """
    destination = Path(destination)
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"cannot download {url!r}; give an address that begins with https://")
    if not destination.is_file():
        with _alone(destination):
            if not destination.is_file():  # another process may have been here while this one waited
                part = Part(destination)
                _complete(url, destination, part, progress, timeout, attempts, wait)
                _accept(part, destination, sha256, check, url)
                return destination
    verify(destination, sha256=sha256, check=check)
    return destination


def verify(path: Path, *, sha256: str | None = None, check: Callable[[Path], None] | None = None) -> None:
    """Compare a file with its recorded SHA-256, or check it and record one if this is its first use.

    Raises:
        CheckpointError: it differs, or ``check`` refuses it.
    """
    first_use = recorded(path) is None
    if first_use and check is not None:
        check(path)
    digest = sha256_of(path)
    compare(digest, path, sha256)
    if first_use:
        record(path, digest)


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    """Hold the file's lock, so that two processes download once."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(destination.with_name(destination.name + ".lock")))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.info("waiting for another process that is downloading %s", destination)
            lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}; choose another place") from error
    try:
        yield
    finally:
        lock.release()


def _complete(
    url: str, destination: Path, part: Part, progress: bool | None, timeout: float, attempts: int, wait: float
) -> None:
    """Transfer until the part is whole or the attempts are used up."""
    reason = "not tried"
    try:
        with _bar(destination.name, progress) as report:
            for attempt in range(attempts):
                if attempt:
                    time.sleep(wait * 2 ** (attempt - 1))
                try:
                    return transfer(url, part, report, timeout)
                except Interrupted as interruption:
                    reason = str(interruption)
                    _logger.info("download of %s: %s", url, reason)
    except CheckpointError as error:
        raise _unavailable(url, destination, str(error)) from error
    kept = f"; the {part.size()} bytes that came are kept, run again to go on" if part.origin(url) else ""
    raise _unavailable(url, destination, f"{reason}, after {attempts} attempts{kept}")


def _unavailable(url: str, destination: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{destination.name} is missing and cannot be downloaded: {reason}. "
        f"Get {url} by other means and put it at {destination}"
    )


def _accept(part: Part, destination: Path, sha256: str | None, check: Callable[[Path], None] | None, url: str) -> None:
    """Move a complete part into place if it is what it should be, else delete it."""
    try:
        if check is not None:
            check(part.path)
        digest = sha256_of(part.path)
        compare(digest, destination, sha256)
        part.move_to(destination)
    except CheckpointError as error:
        part.discard()
        raise CheckpointError(f"what {url} serves is refused: {error}") from error
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}; choose another place") from error
    record(destination, digest)


@contextmanager
def _bar(name: str, show: bool | None) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error; gives a function that takes the bytes there are and the total."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
