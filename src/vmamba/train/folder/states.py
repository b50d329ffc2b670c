"""The training states in a run's folder: written whole or not at all, the last few kept, damaged ones passed over.

A save is several files, and one moment counts: that at which the new ``state.pt`` takes the old one's place. It names
the best weights by their SHA-256. Killed before that moment, a run goes on from the old state and the old best weights;
killed after it, from the new ones.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import CheckpointError, OutputError
from vmamba.output import sync_folder, write_atomically
from vmamba.tasks.run_files import RunFiles
from vmamba.weights.download.fingerprint import sha256_of

#: What `write_atomically` calls a file until it is whole; one that is found was left by a process that was killed.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}(\.\w+)?")


class SavedStates(RunFiles):
    """Names a run's states and the weights that belong to them, writes them and reads them back.

    ``state.pt`` is the last, ``state.1.pt`` the one before, and so on; ``best.1.safetensors`` are the best weights
    before ``best.safetensors``, which an earlier state may name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.state = path / "state.pt"
        #: Better weights than ``best``, of an epoch that no state knows yet.
        self.next_best = path / "best.next.safetensors"

    def states(self) -> list[Path]:
        """The states that there are, the last one first."""
        return [*([self.state] if self.state.is_file() else []), *self._earlier(self.state)]

    def is_abandoned(self) -> bool:
        """Whether nothing lies here but what a run leaves that was killed before its first state was whole."""
        names = {entry.name for entry in self.path.iterdir()} - {self.config.name}
        return self.config.is_file() and all(map(_UNFINISHED.fullmatch, names))

    def sweep(self) -> None:
        """Remove what a process that was killed had not finished writing."""
        for path in self.path.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()

    def commit(self, state: Mapping[str, Any], keep: int = 1) -> None:
        """Write ``state.pt`` and put the best weights, if there are new ones, in their place; keep ``keep`` states.

        Args:
            state: tensors and plain values only, so that it can be read without running code.
            keep: how many states, this one included.

        Raises:
            OutputError: the disk is full, or the folder cannot be written. The states before are whole.
        """
        staged = self.next_best.is_file()
        best = self.next_best if staged else self.best
        content = {**state, "best_sha256": sha256_of(best) if best.is_file() else None}

        def write(temporary: Path) -> None:
            write_tensors(temporary, content)
            sync_folder(self.path)  # the new best weights are there before a state names them
            self._keep(self.state, keep)

        write_atomically(self.state, write)
        sync_folder(self.path)
        if staged:
            self._take_next_best(keep)

    def settle(self, state: Mapping[str, Any], keep: int = 1) -> None:
        """Undo or finish what a `commit` was stopped in, and go back to the best weights that ``state`` names.

        Raises:
            CheckpointError: they are not there.
        """
        self.sweep()
        wanted = state["best_sha256"]
        if wanted is not None and not _is(self.best, wanted):
            earlier = next((path for path in self._earlier(self.best) if _is(path, wanted)), None)
            if _is(self.next_best, wanted):
                self._take_next_best(keep)
            elif earlier is not None:  # of a state before the last one
                write_atomically(self.best, lambda temporary: shutil.copyfile(earlier, temporary))
            else:
                fault = "is not the file that state.pt names" if self.best.is_file() else "is missing"
                raise CheckpointError(f"{self.best} {fault}; without it the run cannot be resumed")
        self.next_best.unlink(missing_ok=True)

    def read_state(self) -> dict[str, Any]:
        """The last state that is whole.

        Raises:
            CheckpointError: as `last_whole_state`.
        """
        return self.last_whole_state()[0]

    def last_whole_state(self) -> tuple[dict[str, Any], Path, list[str]]:
        """The last state that is whole, its file, and a line for each later one that is not.

        Raises:
            CheckpointError: there is none; says what is wrong with the last.
        """
        faults: list[str] = []
        for path in self.states():
            try:
                return read_tensors(path), path, faults
            except CheckpointError as error:
                faults.append(str(error))
        if not faults:
            raise CheckpointError(f"{self.path} has no state.pt, so it cannot be resumed; is it a run's folder?")
        raise CheckpointError(f"{faults[0]}; no earlier state is whole either, so the run cannot be resumed")

    def reinstate(self, path: Path) -> None:
        """Make an earlier state the last one, in place of a damaged one.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            os.replace(path, self.state)
        except OSError as error:
            raise OutputError(f"cannot write {self.state}: {error.strerror}; resume the run elsewhere") from error

    def _take_next_best(self, keep: int) -> None:
        try:
            if self.best.is_file():
                self._keep(self.best, keep)
            os.replace(self.next_best, self.best)
        except OSError as error:
            raise OutputError(f"cannot write {self.best}: {error.strerror}; resume the run elsewhere") from error
        sync_folder(self.path)

    def _earlier(self, path: Path) -> list[Path]:
        """What was kept of a file's earlier versions, the latest first."""
        kept = [(int(p.suffixes[0][1:]), p) for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if _numbered(p)]
        return [p for _, p in sorted(kept)]

    def _keep(self, path: Path, count: int) -> None:
        """Before a new version takes the place of ``path``: keep ``count - 1`` versions under numbers, this one first.

        ``path`` itself stays, so that there is no moment without it. May be done twice for one version.
        """
        earlier = [path.with_name(f"{path.stem}.{i}{path.suffix}") for i in range(1, count)]
        for other in self._earlier(path):
            if other not in earlier:
                other.unlink()
        if not earlier or not path.is_file() or (earlier[0].is_file() and os.path.samefile(path, earlier[0])):
            return
        for target, source in reversed(list(zip(earlier[1:], earlier, strict=False))):
            if source.is_file():
                os.replace(source, target)
        linked = path.with_name(f".{path.stem}.{'0' * 12}{path.suffix}")
        linked.unlink(missing_ok=True)
        try:
            os.link(path, linked)
        except OSError:  # a file system without links
            shutil.copyfile(path, linked)
        os.replace(linked, earlier[0])


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save`, with an OSError where the disk takes no more."""
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:  # of torch's writer, which stumbles over the file's own error when it closes it
        chain: list[BaseException] = [error]
        while (before := chain[-1].__context__) is not None:
            chain.append(before)
        first = next((link for link in chain if isinstance(link, OSError)), chain[-1])
        if isinstance(first, RuntimeError) and "inline_container" in str(first):
            first = OSError(errno.EIO, f"torch could not write it ({str(error).splitlines()[0]})")
        raise first from error


def read_tensors(path: Path) -> dict[str, Any]:
    """What `write_tensors` wrote; tensors on the CPU.

    Raises:
        CheckpointError: the file is cut short, damaged or something else.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums that torch.save writes
            damaged = file.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} cannot be read ({damaged} in it is damaged)")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read ({reason})") from error
    return content


def _numbered(path: Path) -> bool:
    return len(path.suffixes) == 2 and path.suffixes[0][1:].isdigit()


def _is(path: Path, sha256: str) -> bool:
    with suppress(FileNotFoundError):
        return sha256_of(path) == sha256
    return False
