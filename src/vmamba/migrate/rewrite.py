"""Rewrites a file that exists, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from vmamba.errors import OutputError


def rewrite_atomically(path: Path, data: bytes) -> None:
    """Make ``data`` the content of the file ``path``; on any failure the file is as it was.

    A symbolic link stays one and its target is rewritten. Permission bits stay, and the owner where we may set it;
    other hard links to the file keep the old content.

    Raises:
        OutputError: the file or its folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        status = target.stat()
        if not os.access(target, os.W_OK):
            # Replacing it would ask the folder's permission only.
            raise PermissionError(f"{target} is read-only")
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError, AttributeError):  # not ours to give away, or a system without owners
            os.chown(temporary, status.st_uid, status.st_gid)
        os.chmod(temporary, status.st_mode & 0o7777)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; it is as it was. Check the permissions of the file and of "
            f"{target.parent}, and the space on its disk"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
