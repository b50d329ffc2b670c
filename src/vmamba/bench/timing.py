"""Times candidates against each other: first right, then warm, then in turns."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vmamba.errors import ConfigError

PAUSE = 0.05  # seconds
QUICK_MS = 300.0


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
        run: the work; returns when it has ended, or is waited for by ``race``'s ``wait``.
        check: called once, before any timing; returns why the results are wrong, or an empty string. None where there
            is nothing to compare with.
        note: what a reader must know about it.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[], str] | None = None
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """What came of a candidate: times of its warm runs in milliseconds, or why there are none.

    Attributes:
        failure: why it was not timed (wrong results, an exception), or an empty string.
        absent: why it could not even be tried (a package is missing), or an empty string.
        ratio: best time as a part of the baseline's best; above 1 is slower. None where either was not timed.
        extra: further figures of the candidate, by name.
    """

    name: str
    times_ms: tuple[float, ...] = ()
    failure: str = ""
    absent: str = ""
    note: str = ""
    ratio: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def best_ms(self) -> float | None:
        """The shortest run: the least disturbed one."""
        return min(self.times_ms, default=None)

    @property
    def median_ms(self) -> float | None:
        """The median run."""
        return statistics.median(self.times_ms) if self.times_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, best and median among them."""
        return {**dataclasses.asdict(self), "best_ms": self.best_ms, "median_ms": self.median_ms}


@dataclass(frozen=True)
class Race:
    """The candidates of one setting. ``setting`` is what they ran on, ``baseline`` the name that ratios refer to."""

    title: str
    baseline: str
    timings: tuple[Timing, ...]
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no candidate failed; an absent one is no failure."""
        return not any(timing.failure for timing in self.timings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.title,
            "setting": self.setting,
            "baseline": self.baseline,
            "passed": self.passed,
            "timings": [timing.to_dict() for timing in self.timings],
        }


def race(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    seconds: float,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Check every candidate, then time those that are right, taking turns so that a busy moment hits them all.

    A turn begins with a pause, in which the threads of the candidate before stop spinning, and, where the candidate
    is quick, with a run that is not timed: memory and caches are its own again after that.

    Args:
        candidates: their order is the order of the turns.
        rounds: the most turns that are timed; one more comes before, to warm up.
        seconds: no turn starts after this time, but the first is always run to its end.
        wait: returns when the device has nothing left to do.
        clock: seconds.

    Returns:
        a `Timing` for each candidate, in their order, without ratios.
    """
    problems = {candidate.name: _problem(candidate) for candidate in candidates}
    able = [candidate for candidate in candidates if not problems[candidate.name]]
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    took: dict[str, float] = {}
    begin = clock()
    for turn in range(-1, rounds):  # turn -1 warms up
        if turn > 0 and clock() - begin > seconds:
            break
        for candidate in able:
            wait()
            time.sleep(PAUSE)
            if took.get(candidate.name, math.inf) < QUICK_MS:
                candidate.run()
                wait()
            start = clock()
            candidate.run()
            wait()
            took[candidate.name] = (clock() - start) * 1e3
            if turn >= 0:
                times[candidate.name].append(took[candidate.name])
    return [
        Timing(candidate.name, tuple(times[candidate.name]), problems[candidate.name], note=candidate.note)
        for candidate in candidates
    ]


def _problem(candidate: Candidate) -> str:
    if candidate.check is None:
        return ""
    try:
        return candidate.check()
    except Exception as error:  # a broken candidate is a result, not a reason to lose the others'
        return f"{type(error).__name__}: {error}"


def with_ratios(timings: Sequence[Timing], baseline: str) -> tuple[Timing, ...]:
    """The same with each best time as a part of the best of ``baseline``.

    Raises:
        ConfigError: no candidate is called ``baseline``.
    """
    found = {timing.name: timing for timing in timings}
    if baseline not in found:
        raise ConfigError(f"baseline {baseline!r} is not among the candidates {', '.join(found)}")
    unit = found[baseline].best_ms
    return tuple(
        dataclasses.replace(
            timing, ratio=timing.best_ms / unit if timing.best_ms is not None and unit is not None else None
        )
        for timing in timings
    )


def first_timed(timings: Sequence[Timing]) -> str:
    """The first candidate that was timed, or the first one: a baseline where none is named."""
    return next((timing.name for timing in timings if timing.times_ms), timings[0].name)


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run with this many of torch's threads (None: as many as it has now); yields the number.

    Raises:
        ConfigError: fewer than one.
    """
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise ConfigError(f"--threads takes a number ≥ 1, not {count}")
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
