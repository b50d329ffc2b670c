"""What a training run tells its user: a live bar on a terminal, one line for each epoch everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmamba.tasks.protocol import Metric, Task
from vmamba.train.reports.rows import EpochRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Reporter:
    """Prints to ``console``; says nothing where that is None. Use as a context manager.

    Args:
        console: where to.
        task: whose figures.
        epochs: of the whole run.
        steps: of an epoch.
    """

    def __init__(self, console: Console | None, task: type[Task] | Task, epochs: int, steps: int) -> None:
        self.console = console
        self.task = task
        self.epochs = epochs
        self.steps = steps
        self._bar: Progress | None = None
        self._task: Any = None
        self._started = time.monotonic()
        self._done = 0  # steps since the start, for the ETA

    def __enter__(self) -> Reporter:
        if self.console is not None and self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TextColumn("{task.fields[speed]:,.0f} img/s  ETA {task.fields[eta]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Print one line."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def start_epoch(self, epoch: int) -> None:
        """A new epoch, counted from 0, begins."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            zero: dict[str, Any] = {"figures": self._running({}), "speed": 0.0, "eta": "…"}
            self._task = self._bar.add_task(f"epoch {epoch + 1}/{self.epochs}", total=self.steps, **zero)

    @property
    def live(self) -> bool:
        """Whether `step` shows anything; reading a loss costs a wait on a GPU."""
        return self._bar is not None

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float) -> None:
        """``step`` steps of ``epoch`` are done, with running means of the epoch so far."""
        if self._bar is not None and self._task is not None:
            left = self.eta((self.epochs - epoch) * self.steps - step, self._done + step)
            values: dict[str, Any] = {"figures": self._running(figures), "speed": speed, "eta": left}
            self._bar.update(self._task, completed=step, **values)

    def _running(self, figures: Mapping[str, float]) -> str:
        """With a digit less than at the epoch's end, since they change while one reads them."""
        return "  ".join(f"{m.label} {m.text(figures.get(m.name, 0.0), fewer=1)}" for m in self.task.running)

    def eta(self, steps_left: int, steps_done: int) -> str:
        """The time that ``steps_left`` will take at the pace of the ``steps_done`` since the start, as h:mm:ss."""
        if steps_done == 0:
            return "…"
        return _clock((time.monotonic() - self._started) / steps_done * steps_left)

    def end_epoch(self, row: EpochRow, best: bool) -> None:
        """Print the epoch's line."""
        self._done += self.steps
        left = (self.epochs - row.epoch) * self.steps
        width = len(str(self.epochs))
        self.say(
            f"epoch {row.epoch:>{width}}/{self.epochs}  train {_figures(self.task.running, row.train)}"
            f"  val {_figures(self.task.metrics, row.val)}{' *' if best else '  '}"
            f"  {row.images_per_second:,.0f} img/s{_gauges(row)}  ETA {self.eta(left, self._done)}"
        )


def _figures(metrics: Sequence[Metric], values: Mapping[str, float]) -> str:
    return " ".join(f"{metric.label} {metric.text(values[metric.name])}" for metric in metrics)


def _gauges(row: EpochRow) -> str:
    """The gradient's norm, the memory, and the wait for data where it is a tenth or more: more workers would help."""
    said = "" if row.grad_norm is None else f"  grad {row.grad_norm:.2f}"
    said += "" if row.memory_mib is None else f"  {row.memory_mib / 1024:.1f} GiB"
    waits = row.data_wait is not None and row.data_wait >= 0.1
    return f"{said}  {row.data_wait:.0%} waiting for data" if waits else said


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
