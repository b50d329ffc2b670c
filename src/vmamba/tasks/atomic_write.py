"""Writes a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from vmamba.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: until the last moment what was there stays, and on any failure it stays for good.

    A symbolic link stays one and its target is written. Permission bits stay; a new file gets the usual ones.

    Raises:
        OutputError: the file or its folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(f"{target} is read-only")
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _take_over(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; what was there is as it was. Check the permissions of the file and "
            f"of {target.parent}, and the space on its disk"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _take_over(target: Path, temporary: str) -> None:
    """Give ``temporary`` the permissions and, as far as we may, the owner that ``target`` has or would get."""
    if target.exists():
        status = target.stat()
        with contextlib.suppress(OSError, AttributeError):
            os.chown(temporary, status.st_uid, status.st_gid)
        os.chmod(temporary, status.st_mode & 0o7777)
    else:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
