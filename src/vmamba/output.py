"""Places that results go to: checked before anything is computed, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmamba.errors import OutputError


def check_writable_folder(path: Path) -> None:
    """Make sure that ``path`` is, or can become, a folder that we may write to.

    Raises:
        OutputError: something on the way is a file or is not writable.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"output {path} is a file; give a folder")
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"cannot create output folder {path}: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write output folder {path}: no permission in {place}; choose another place")


def create_folder(path: Path) -> None:
    """Create the folder on disk.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create output folder {path}: {error.strerror}; choose another place") from error


def check_writable_file(path: Path) -> None:
    """Make sure that ``path`` is, or can become, a file that we may write to. Creates nothing.

    Raises:
        OutputError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give a file")
    if path.parent.exists() and not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: {path.parent} is a file, not a folder")
    check_writable_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have what was moved within the folder on disk before anything that comes after, where the system offers that."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as JSON, the whole file or nothing. Numbers that are not finite become null: JSON has none.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n"
    # A file name may hold bytes that are no text; as \\udcXX they stay valid JSON.
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the result into place.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")
        # Made with everybody's permissions, from which the system takes what the user's mask forbids.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
