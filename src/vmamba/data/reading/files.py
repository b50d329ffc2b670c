"""Names of a million image files in a few arrays, which loader processes share instead of each growing its own copy.

A list of a million `Path` objects takes 200 MB, and reading it in a forked process copies it: each look at an object
changes its count of references, which lies in the same page. Arrays have no counts.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vmamba.data.reading.images import IMAGE_SUFFIXES

#: Files whose sizes go into a fingerprint, spread evenly: a million looks at a network's disk would take minutes.
SIZES_SEEN = 10_000


class FileList:
    """Files under one folder, in order.

    Args:
        root: the folder.
        text: the names under it, with ``/`` between folders, as the file system has their bytes, end to end; uint8.
        starts: where each name begins in ``text``; int64.
        ends: where it ends.
    """

    def __init__(
        self, root: Path, text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> None:
        self.root = root
        self._text = text
        self._starts = starts
        self._ends = ends

    @classmethod
    def of(cls, root: Path, names: Iterable[bytes]) -> FileList:
        """The files with these names under ``root``."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += name
            ends.append(len(text))
        edges = np.array(ends, np.int64)
        starts = np.roll(edges, 1)
        starts[:1] = 0
        return cls(root, np.frombuffer(bytes(text), np.uint8), starts, edges)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> bytes:
        """A file's name under the folder, as bytes."""
        return self._text[self._starts[index] : self._ends[index]].tobytes()

    def __getitem__(self, index: int) -> Path:
        return self.root / os.fsdecode(self.name(index))

    def source(self, index: int) -> Any:
        """What to read a file from: its path, or a stream of its bytes."""
        return self[index]

    def size(self, index: int) -> int:
        """A file's size in bytes; −1 if it is not there."""
        try:
            return self[index].stat().st_size
        except OSError:
            return -1

    def take(self, indices: npt.NDArray[np.int64]) -> FileList:
        """The files at ``indices``, in that order; the names are not copied."""
        return FileList(self.root, self._text, self._starts[indices], self._ends[indices])

    def fingerprint(self, targets: npt.NDArray[np.generic]) -> str:
        """A short word from names and labels ``(n, …)``, and from the sizes of up to `SIZES_SEEN` of the files."""
        digest = hashlib.sha256()
        measured = set(spread(len(self), SIZES_SEEN).tolist())
        for index, target in enumerate(targets):
            size = b""
            if index in measured:
                size = str(self.size(index)).encode()
            label = str(int(target)).encode() if target.ndim == 0 else target.tobytes()
            digest.update(self.name(index) + b"\0" + size + b"\0" + label + b"\n")
        return digest.hexdigest()[:16]


def spread(length: int, count: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` indices below ``length``, as evenly spread as can be, the first and the last among them."""
    if length <= count:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.int64))


def visible(place: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; hidden files and macOS's leftovers apart.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(place) as entries:
        return sorted((e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: e.name)


def image_names(place: str, under: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[bytes]:
    """The image files in a folder and the folders in it, each as ``under/…``, in the order of their names.

    Raises:
        OSError: one of the folders cannot be listed.
    """
    found: list[bytes] = []
    for entry in visible(place):
        if entry.is_dir():  # the listing has told already; only a link costs a call
            found += image_names(entry.path, f"{under}/{entry.name}", suffixes)
        elif entry.name.lower().endswith(suffixes):
            found.append(os.fsencode(f"{under}/{entry.name}"))
    return found


def list_folders(
    root: Path, folders: list[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[FileList, npt.NDArray[np.int64]]:
    """The image files inside ``folders`` under ``root``, folder after folder, and how many each has.

    Several folders are listed at once, since a network's disk answers late.

    Raises:
        OSError: one cannot be listed.
    """
    counts: list[int] = []

    def names() -> Iterable[bytes]:
        with ThreadPoolExecutor(min(16, len(folders) or 1)) as pool:
            for found in pool.map(lambda name: image_names(str(root / name), name, suffixes), folders):
                counts.append(len(found))
                yield from found

    files = FileList.of(root, names())
    return files, np.array(counts, np.int64)
