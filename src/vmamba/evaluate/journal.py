"""An unfinished prediction on disk: a line for each image that is done, so that a stopped command can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError, OutputError
from vmamba.output import create_folder

NAME = "predictions.unfinished.jsonl"


@dataclass(frozen=True)
class Record:
    """What became of one image: its answer, as plain values, or why it was left out."""

    answer: Mapping[str, Any] | None = None
    skipped: str | None = None


class Journal:
    """The file of the lines. Its first tells what was asked; nothing is made before the first image is done.

    Args:
        folder: where it lies.
        asked: what must be the same for it to be gone on with, as plain values.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self._asked = dict(asked)
        self._begun = False

    def resume(self) -> list[Record]:
        """The images that were done, in order; a last line that was cut short is dropped. Empty if there is no file.

        Raises:
            ConfigError: something else was asked then; names what.
        """
        if not self.path.is_file():
            return []
        try:
            whole = self.path.read_bytes()
            kept = whole[: whole.rfind(b"\n") + 1]
            head, *lines = [json.loads(line) for line in kept.splitlines()] or [{}]
            records = [Record(line.get("answer"), line.get("skipped")) for line in lines]
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot go on from {self.path} ({error}); remove it to start anew") from error
        if not kept:
            return []
        differing = [name for name, value in self._asked.items() if head.get(name) != value]
        if differing:
            raise ConfigError(
                f"cannot go on from {self.path}: it was begun with other {', '.join(differing)}. Give the same again, "
                "or leave resume out to start anew"
            )
        if len(kept) < len(whole):
            self._guarded(lambda: self.path.write_bytes(kept))
        self._begun = True
        return records

    def add(self, records: Sequence[Record]) -> None:
        """Note images that are done.

        Raises:
            OutputError: they cannot be written.
        """
        lines: Iterable[Any] = [
            {"answer": record.answer} if record.skipped is None else {"skipped": record.skipped} for record in records
        ]
        if not self._begun:
            create_folder(self.path.parent)
            self._guarded(lambda: self.path.write_bytes(b""))
            lines = [self._asked, *lines]
            self._begun = True
        # Names that are no text are escaped, as all that is not ASCII.
        text = "".join(json.dumps(line) + "\n" for line in lines)

        def append() -> None:
            with self.path.open("ab") as file:
                file.write(text.encode("ascii"))

        self._guarded(append)

    def close(self) -> None:
        """All is done and written elsewhere: remove the file."""
        self.path.unlink(missing_ok=True)

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; make room and go on with resume") from error
