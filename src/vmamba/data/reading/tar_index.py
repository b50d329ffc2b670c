"""Where each file lies in an uncompressed tar archive, so that any of them can be read without those before it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vmamba.errors import DataError, VMambaError
from vmamba.output import write_atomically


class Place(NamedTuple):
    """A file's first byte within the archive, and how many it has."""

    offset: int
    size: int


def index_tar(path: Path) -> dict[str, Place]:
    """The files in an archive by name, in their order; hidden ones are left out.

    Read by Python's tarfile once, a header for each file, and kept in ``~/.cache/vmamba/shards`` as long as the archive
    has the same size and time of change.

    Raises:
        DataError: it cannot be read, is compressed, or is cut short.
    """
    try:
        stat = path.stat()
        word = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        kept = Path.home() / ".cache" / "vmamba" / "shards" / f"{hashlib.sha256(word.encode()).hexdigest()[:24]}.npz"
        with suppress(OSError, ValueError, KeyError, EOFError), np.load(kept, allow_pickle=False) as file:
            names = bytes(file["names"]).decode().split("\0")
            return {name: Place(*place) for name, place in zip(names, file["places"].tolist(), strict=True)}
        with tarfile.open(path, "r:") as archive:
            found = {
                str(PurePosixPath(member.name)): Place(member.offset_data, member.size)  # without a leading ./
                for member in archive
                if member.isfile() and not PurePosixPath(member.name).name.startswith(".")
            }
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {path}: {error}; want a whole, uncompressed tar archive") from error
    if any(place.offset + place.size > stat.st_size for place in found.values()):
        raise DataError(f"{path} is cut short: a file in it ends after byte {stat.st_size:,}; fetch it again")
    if found:
        text = np.frombuffer("\0".join(found).encode("utf-8", "surrogateescape"), np.uint8)
        places = np.array(list(found.values()), np.int64)
        with suppress(VMambaError, OSError):  # a cache is no must
            write_atomically(kept, lambda temporary: np.savez(temporary, names=text, places=places))
    return found


def read_bytes(archive: Path, offset: int, size: int) -> io.BytesIO:
    """A file out of an archive.

    Raises:
        OSError: it cannot be read, or the archive has become shorter.
    """
    with archive.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{archive} ends early")
    return io.BytesIO(data)


@lru_cache(maxsize=8)
def _index(archive: Path) -> Mapping[str, Place]:
    return index_tar(archive)


def member(path: Path) -> io.BytesIO | Path:
    """What ``ARCHIVE.tar/NAME`` names, opened; any other path as it is.

    Raises:
        OSError: the archive has no such file. DataError: it cannot be read.
    """
    for parent in path.parents:
        if parent.suffix.lower() == ".tar" and parent.is_file():
            place = _index(parent).get(path.relative_to(parent).as_posix())
            if place is None:
                raise FileNotFoundError(path)
            return read_bytes(parent, *place)
    return path
