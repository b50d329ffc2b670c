"""An unfinished measurement on disk, so that a stopped `vmamba eval` can go on."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError
from vmamba.output import write_atomically
from vmamba.tasks.protocol import Meter

#: Between two writes; a meter may be as large as what a data set's every object says.
SECONDS = 30.0


class Progress:
    """The file of a task's meter and of how many samples it has seen.

    It is a pickle, written and read by whoever names it: as safe as the folder that it lies in.

    Args:
        path: the file.
        asked: what must be the same for it to be gone on with, as plain values.
        seconds: between two writes.

    Attributes:
        before: how many samples an earlier call had seen.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], seconds: float = SECONDS) -> None:
        self.path = path
        self._asked = dict(asked)
        self._seconds = seconds
        self.before = 0
        self._written = time.monotonic()

    def resume(self, fresh: Meter) -> tuple[Meter, int]:
        """The meter and how many samples it has seen; ``fresh`` and 0 if there is no file.

        Raises:
            ConfigError: the file cannot be read, or something else was asked then; names what.
        """
        if not self.path.is_file():
            return fresh, 0
        try:
            asked, meter, seen = pickle.loads(self.path.read_bytes())
            differing = [name for name, value in self._asked.items() if asked.get(name) != value]
        except Exception as error:  # whatever foreign bytes make of pickle
            raise ConfigError(
                f"progress={self.path} holds no unfinished measurement ({type(error).__name__}: {error}); remove it, "
                "or name another file"
            ) from error
        if differing:
            raise ConfigError(
                f"progress={self.path} was begun with other {', '.join(differing)}; give the same again, or remove it "
                "to start anew"
            )
        return meter, seen

    def note(self, meter: Meter, seen: int) -> None:
        """Write the file, if it is time again.

        Raises:
            OutputError: it cannot be written.
        """
        if time.monotonic() - self._written >= self._seconds:
            state = pickle.dumps((self._asked, meter, seen))
            write_atomically(self.path, lambda temporary: temporary.write_bytes(state))
            self._written = time.monotonic()

    def close(self) -> None:
        """All is measured: remove the file."""
        self.path.unlink(missing_ok=True)
