"""The mistakes a user can make, each as a type whose message says what was given, what is legal, and the mend.

The command line turns any of these into one line on standard error and exit code 2; everything else is
a fault of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VMambaError(ValueError):
    """Something the caller gave cannot be used; the message names the mend."""


class InputError(VMambaError):
    """Tensors whose shapes, dtypes or devices do not fit together."""


class ConfigError(VMambaError):
    """A configuration value, option word or model name that is not legal."""


class BackendError(VMambaError, AssertionError):
    """A scan backend that is unknown, removed, or cannot run.

    Also an ``AssertionError``, because that is what upstream raised and what its users catch.
    """


class CheckpointError(VMambaError):
    """A weight file that is missing, broken, unsafe, or does not fit the model."""


class DataError(VMambaError):
    """A data set, image or folder that cannot be used."""


class LoadingError(DataError):
    """A process that loads images died; what it loaded may be fine."""


class TrainingError(VMambaError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class TrainingStopped(Exception):  # noqa: N818 (nobody's mistake)
    """A signal asked training to stop: its state is saved, and it can be resumed.

    Attributes:
        signal: the signal's number. The command line's exit code is 128 more.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class ExportError(VMambaError):
    """A model that cannot be exported, or a file that does not compute what the model does."""


class OutputError(VMambaError):
    """A place that results cannot be written to."""


def nearest(word: str, legal: Iterable[str], count: int = 3) -> str:
    """Return ``"; did you mean 'a', 'b'?"`` for the legal words nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(legal), n=count, cutoff=0.4)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
