"""Rewrites ``selective_scan_backend="core"`` in users' files: nothing but the value's own bytes changes."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import tokenize
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.errors import ConfigError, DataError, OutputError, nearest
from vmamba.migrate.data import find_json, find_json_lines, find_notebook, find_yaml
from vmamba.migrate.python import find_python
from vmamba.migrate.rewrite import rewrite_atomically
from vmamba.migrate.spot import OLD, Spot, UnparsableError

if TYPE_CHECKING:
    from rich.console import Console

#: What `OLD` can become.
TARGETS = ("oflex", "mamba", "torch")

_FINDERS: dict[str, Callable[[str], list[Spot]]] = {
    ".py": find_python,
    ".pyi": find_python,
    ".pyw": find_python,
    ".yaml": find_yaml,
    ".yml": find_yaml,
    ".json": find_json,
    ".jsonl": find_json_lines,
    ".ipynb": find_notebook,
}
_SKIPPED_FOLDERS = {
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "site-packages",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".nox", ".ipynb_checkpoints",
}  # fmt: skip
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}

#: Every text with something to migrate holds this word, in UTF-8 or UTF-16.
_MENTION = re.compile(rb"b\0?a\0?c\0?k\0?e\0?n\0?d", re.IGNORECASE)
#: Files of a folder without a mention are read only to name those that do not parse; not worth it for data sets.
_LARGE = 256 * 1024


@dataclass(frozen=True)
class Finding:
    """One place in a file: line and column from 1, in characters."""

    path: Path
    line: int
    column: int
    kind: str
    text: str  # the line, without its indentation
    note: str = ""  # why a person has to look

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{_shown(self.path)}:{self.line}:{self.column}: {self.kind}{note}: {self.text}"


@dataclass(frozen=True)
class FileChange:
    """What the migration says about one file. ``before`` and ``after`` are its bytes; both empty where none changes."""

    path: Path
    before: bytes = b""
    after: bytes = b""
    findings: tuple[Finding, ...] = ()
    by_hand: tuple[Finding, ...] = ()
    error: str = ""  # why the file cannot be read
    mentioned: bool = True  # whether the file could hold something to migrate at all

    @property
    def changes(self) -> bool:
        """Whether there is something to write."""
        return self.before != self.after

    def diff(self) -> str:
        """The change as a unified diff that ``patch -p0`` takes, in the file's own line endings."""
        before, after = (_lines(_decode(self.path, data).text) for data in (self.before, self.after))
        name = _shown(self.path)
        lines = difflib.unified_diff(before, after, name, name)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


@dataclass(frozen=True)
class _Decoded:
    bom: bytes
    encoding: str
    text: str

    def encode(self, text: str) -> bytes:
        return self.bom + text.encode(self.encoding)


def plan(paths: Sequence[Path], to: str = "oflex") -> list[FileChange]:
    """Look through files and folders; nothing is written.

    Args:
        paths: files by name (Python, YAML, JSON, JSON lines, notebooks), or folders, walked without version control,
            virtual environments and caches, not through links to folders.
        to: ``"oflex"``, ``"mamba"`` or ``"torch"``.

    Returns:
        One `FileChange` for each file looked at, in order, also where there is nothing to say about it.

    Raises:
        ConfigError: ``to`` is none of these, or a file's name says no known language.
        DataError: a path does not exist.
    """
    _check_target(to)
    if not paths:
        raise ConfigError("nothing to look at; give the files or folders to migrate: `vmamba migrate FILE_OR_FOLDER`")
    for path in paths:
        _check_path(path)

    changes = []
    seen: set[str] = set()
    refused: list[OSError] = []
    for path, named in _files(paths, refused):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            if (change := _look_at(path, to, named)) is not None:
                changes.append(change)
    changes += [FileChange(Path(str(error.filename)), error=error.strerror or str(error)) for error in refused]
    return changes


def apply(change: FileChange) -> None:
    """Write one planned change, whole or not at all.

    Raises:
        OutputError: the file has changed since it was read, or cannot be written; it is as it was.
    """
    if not change.changes:
        return
    try:
        now = change.path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot write {_shown(change.path)}: {error.strerror}; plan the migration again") from error
    if now != change.before:
        raise OutputError(f"{_shown(change.path)} changed while it was being migrated; it is as it was. Run it again")
    rewrite_atomically(change.path, change.after)


def run_migrate(paths: list[Path], to: str, write: bool, console: Console) -> int:
    """Print what `plan` finds, and with ``write`` do it.

    Returns:
        0 where nothing is to be done or everything was; 1 where changes are pending (without ``write``), or where a
        file that mentions a backend could not be read. What is left to look at by hand does not count.

    Raises:
        ConfigError, DataError: as `plan`; nothing was written.
        OutputError: files could not be written; the others were, and each of these is as it was.
    """
    changes = plan(paths, to)
    failures: list[str] = []
    written = 0
    for change in changes:
        _print_change(change, to, console)
        if write and change.changes:
            try:
                apply(change)
                written += 1
            except OutputError as error:
                failures.append(str(error))
    pending = [change for change in changes if change.changes]
    values = sum(len(change.findings) for change in pending)
    by_hand = sum(len(change.by_hand) for change in changes)
    unread = [change for change in changes if change.error]

    what = f'{_count(values, "value")} of "{OLD}" in {_count(len(pending), "file")}'
    if not pending:
        say = "nothing to migrate"
    elif write:
        say = f'{written} of {_count(len(pending), "file")} written: {what}, now "{to}"'
    else:
        say = f'{what} to change to "{to}"; --write does it'
    if by_hand:
        say += f"; {_count(by_hand, 'place')} to look at by hand"
    if unread:
        say += f"; {_count(len(unread), 'file')} not read"
    console.out(f"{say} ({_count(len(changes), 'file')} looked at)", highlight=False)

    if failures:
        raise OutputError("; ".join(failures))
    return int(bool(pending and not write) or any(change.mentioned for change in unread))


def _print_change(change: FileChange, to: str, console: Console) -> None:
    from rich.segment import Segment, Segments
    from rich.style import Style

    colours = {"+": "green", "-": "red", "@": "cyan"}
    if change.changes:
        # Raw segments: the diff keeps its tabs and line endings, so that `patch` takes it.
        lines = _lines(change.diff())
        console.print(
            Segments([Segment(line, Style.parse(colours.get(line[0], "none"))) for line in lines]),
            soft_wrap=True,
            end="",
        )
        for finding in change.findings:
            console.out(
                f'{finding.kind} at {_shown(finding.path)}:{finding.line}:{finding.column} -> "{to}"', highlight=False
            )
    for finding in change.by_hand:
        console.out(f"look at this by hand: {finding}", style="yellow", highlight=False)
    if change.error:
        rest = "" if change.mentioned else " (no mention of a backend in it)"
        console.out(f"not read: {_shown(change.path)}: {change.error}{rest}", style="red", highlight=False)


# Which files.


def _check_target(to: str) -> None:
    if to == OLD:
        raise ConfigError(f"--to {OLD} is the value that was removed; legal: {', '.join(TARGETS)}")
    if to not in TARGETS:
        raise ConfigError(
            f"--to {to!r} is not a backend to migrate to; legal: {', '.join(TARGETS)}{nearest(to, TARGETS)}"
        )


def _check_path(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        if path.is_symlink():
            raise DataError(f"{_shown(path)} is a link to {os.readlink(path)}, which does not exist")
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{_shown(path)} does not exist{nearest(path.name, beside)}")
    if not path.is_file():
        raise DataError(f"{_shown(path)} is neither a file nor a folder")
    if path.suffix.lower() not in _FINDERS:
        raise ConfigError(
            f"{_shown(path)}: a file whose name ends in {path.suffix!r} cannot be migrated; "
            f"legal: {', '.join(_FINDERS)}, or a folder"
        )


def _files(paths: Sequence[Path], refused: list[OSError]) -> Iterator[tuple[Path, bool]]:
    """Each file and whether it was named itself; folders that cannot be listed go to ``refused``."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path, onerror=refused.append):
            folders[:] = sorted(
                name
                for name in folders
                if name not in _SKIPPED_FOLDERS and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
            )
            for name in sorted(names):
                file = Path(folder, name)
                if file.suffix.lower() in _FINDERS and file.is_file():
                    yield file, False


# One file.


def _look_at(path: Path, to: str, named: bool) -> FileChange | None:
    """What there is to say about one file; None for a file of a folder that is no text."""
    mentioned = True
    try:
        mentioned = _mentions_backend(path)
        if not named and not mentioned and path.stat().st_size > _LARGE:
            return FileChange(path, mentioned=False)
        data = path.read_bytes()
        if b"\0" in data and not data.startswith(tuple(_BOMS)):
            return FileChange(path, error="is not text", mentioned=mentioned) if named else None
        decoded = _decode(path, data)
        spots = _FINDERS[path.suffix.lower()](decoded.text)
    except OSError as error:
        return FileChange(path, error=error.strerror or str(error), mentioned=mentioned)
    except UnparsableError as error:
        return FileChange(path, error=f"does not parse: {error}", mentioned=mentioned)

    text = decoded.text
    for spot in reversed(spots):
        if not spot.by_hand:
            text = text[: spot.start] + to + text[spot.end :]
    after = decoded.encode(text)
    findings = _Places(path, decoded.text)
    return FileChange(
        path,
        data if after != data else b"",
        after if after != data else b"",
        tuple(findings.at(spot) for spot in spots if not spot.by_hand),
        tuple(findings.at(spot) for spot in spots if spot.by_hand),
        mentioned=mentioned,
    )


def _mentions_backend(path: Path) -> bool:
    """Search in pieces: a folder may hold data sets."""
    with path.open("rb") as file:
        tail = b""
        while piece := file.read(1 << 20):
            if _MENTION.search(tail + piece):
                return True
            tail = piece[-16:]
    return False


def _decode(path: Path, data: bytes) -> _Decoded:
    """Decode as Python or, for data, as UTF-8 or UTF-16 with a mark; the way back is exact, or it is an error."""
    bom = next((mark for mark in _BOMS if data.startswith(mark)), b"")
    encoding = _BOMS.get(bom, "utf-8")
    try:
        if _FINDERS[path.suffix.lower()] is find_python:
            encoding, _ = tokenize.detect_encoding(iter(data.splitlines(keepends=True)).__next__)
            encoding = encoding.removesuffix("-sig")  # the mark is kept apart
        decoded = _Decoded(bom, encoding, data[len(bom) :].decode(encoding))
        exact = decoded.encode(decoded.text) == data
    except SyntaxError as error:
        raise UnparsableError(f"{error.msg} (Python is utf-8 unless its first two lines say otherwise)") from error
    except (UnicodeError, LookupError) as error:
        raise UnparsableError(f"not {encoding}: {error}") from error
    if not exact:
        raise UnparsableError(f"its {encoding} cannot be written back byte by byte")
    return decoded


class _Places:
    """Turns offsets in one text into findings."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
        self.starts = [0]
        for line in self.lines[:-1]:
            self.starts.append(self.starts[-1] + len(line))

    def at(self, spot: Spot) -> Finding:
        line = bisect_right(self.starts, spot.start)
        column = spot.start - self.starts[line - 1]
        text = self.lines[line - 1].strip()
        if len(text) > 200:  # minified
            around = self.lines[line - 1][max(0, column - 60) : column + 60]
            text = f"… {around.strip()} …"
        return Finding(self.path, line, column + 1, spot.kind, text, spot.note)


def _lines(text: str) -> list[str]:
    """Lines as `patch` counts them: `str.splitlines` ends lines at form feeds too."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _shown(path: Path) -> str:
    """The path, printable also where the file system's bytes are not."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
