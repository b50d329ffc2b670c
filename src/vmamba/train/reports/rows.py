"""One line of ``metrics.csv``, whatever figures the task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

from vmamba.tasks.protocol import Metric, Task

_CLOCKS = ("lr", "seconds", "images_per_second")

#: Columns that runs of earlier versions do not have: their rows have None there, and empty cells.
_GAUGES = ("grad_norm", "memory_mib", "data_wait")


@dataclass(frozen=True)
class EpochRow:
    """What an epoch gave. The columns of a figure are its name behind ``train_`` and ``val_``.

    Attributes:
        epoch: counted from 1.
        train: `Task.running`, means over the epoch's training samples as they were learnt from (augmented, mixed).
        val: `Task.metrics` of the weights that are saved, on the validation samples.
        lr: at the epoch's last update.
        seconds: of the whole epoch.
        images_per_second: in training.
        grad_norm, memory_mib, data_wait: see `vmamba.train.loop.gauges.Readings`.
    """

    epoch: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    lr: float
    seconds: float
    images_per_second: float
    grad_norm: float | None = None
    memory_mib: float | None = None
    data_wait: float | None = None

    def flat(self) -> dict[str, Any]:
        """By column, in order; so it stands in ``metrics.csv`` and in ``state.pt``."""
        train = {f"train_{name}": value for name, value in self.train.items()}
        val = {f"val_{name}": value for name, value in self.val.items()}
        return {"epoch": self.epoch, **train, **val, **{name: getattr(self, name) for name in (*_CLOCKS, *_GAUGES)}}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], task: type[Task] | Task) -> EpochRow:
        """Undo `flat`. Raises KeyError where a figure of the task is missing that has been there from the first."""
        clocks: dict[str, Any] = {name: values[name] for name in _CLOCKS}
        gauges: dict[str, Any] = {name: values.get(name) for name in _GAUGES}
        return cls(
            epoch=values["epoch"],
            train={metric.name: values[f"train_{metric.name}"] for metric in task.running},
            val={metric.name: _figure(values, metric) for metric in task.metrics},
            **clocks,
            **gauges,
        )


def _figure(values: Mapping[str, Any], metric: Metric) -> float:
    """A validation figure; one that rows of an older version lack is not known."""
    name = f"val_{metric.name}"
    value: float = values.get(name, nan) if metric.since_later else values[name]
    return value


def columns(task: type[Task] | Task) -> list[str]:
    """The header of ``metrics.csv``."""
    train, val = (f"train_{metric.name}" for metric in task.running), (f"val_{metric.name}" for metric in task.metrics)
    return ["epoch", *train, *val, *_CLOCKS, *_GAUGES]


def rank(row: EpochRow, task: type[Task] | Task, select_by: str) -> tuple[float, ...]:
    """The better epoch has the higher rank: by the figure ``select_by``, then by the task's others in their order."""
    first = sorted(task.metrics, key=lambda metric: metric.name != select_by)
    return tuple(metric.rank(row.val[metric.name]) for metric in first)
