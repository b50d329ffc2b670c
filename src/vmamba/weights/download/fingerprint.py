"""SHA-256 of files: recorded beside a file at its first use, compared at every later one."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from vmamba.errors import CheckpointError, OutputError
from vmamba.output import write_atomically

_PREFIX_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_path(path: Path) -> Path:
    """Where the SHA-256 of ``path`` is kept: a file that ``sha256sum -c`` reads too."""
    return path.with_name(path.name + ".sha256")


def recorded(path: Path) -> str | None:
    """The recorded SHA-256 of ``path``, or None where none is recorded.

    Raises:
        CheckpointError: the record is no SHA-256.
    """
    record = record_path(path)
    try:
        text = record.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read {record}: {error.strerror}; delete it to have it made again") from error
    words = text.split()
    if not words or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise CheckpointError(f"{record} holds no SHA-256; delete it to have it made again")
    return words[0]


def record(path: Path, digest: str) -> None:
    """Write ``digest`` as that of ``path``. A folder that cannot be written, such as a shared cache, is left alone."""
    line = f"{digest}  {path.name}\n"
    with suppress(OutputError):
        write_atomically(record_path(path), lambda temporary: temporary.write_text(line, encoding="utf-8"))


def compare(digest: str, path: Path, sha256: str | None = None) -> None:
    """Compare a digest with everything known about ``path``: the caller's, the prefix in its name, the record.

    Args:
        digest: what the content hashes to.
        path: the file's final place; ``-[0-9a-f]{8}`` or more before a dot in its name is the digest's beginning, which
            is `torch.hub`'s convention.
        sha256: the digest the caller expects, or its beginning.

    Raises:
        CheckpointError: they differ; says which.
    """
    if sha256 is not None and not digest.startswith(sha256.lower()):
        raise CheckpointError(f"{path.name} has SHA-256 {digest}, want {sha256.lower()}")
    in_name = _PREFIX_IN_NAME.search(path.name)
    if in_name and not digest.startswith(in_name[1]):
        raise CheckpointError(f"{path.name} has SHA-256 {digest}, which its name contradicts; get the file again")
    known = recorded(path)
    if known is not None and digest != known:
        raise CheckpointError(
            f"{path.name} has SHA-256 {digest}, but {known} was recorded at its first use in {record_path(path)}; "
            f"delete {path} to get it again, or the record if the change is meant"
        )
