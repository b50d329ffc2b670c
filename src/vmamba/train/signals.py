"""Signals that ask a run to stop: they are noted, and the run saves and leaves at the end of the step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

#: What clusters send before they take a machine away; not every system has each.
_ASKING = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopSignals:
    """While it is entered, SIGTERM, SIGUSR1 and the first Ctrl-C are noted in ``asked``; a second Ctrl-C interrupts.

    In other threads than the main one nothing is changed: Python delivers signals there alone.

    Attributes:
        asked: the number of the signal that came, the latest; 0 = none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _ASKING if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked == signal.SIGINT:
                raise KeyboardInterrupt
            # Written to the descriptor itself: a signal may have come in the middle of a print.
            os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once\n")
        self.asked = number


def leave_signals_to_main(_: int = 0) -> None:
    """Ignore them in a loading process: they reach the whole process group, and the main process alone decides."""
    for name in _ASKING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
