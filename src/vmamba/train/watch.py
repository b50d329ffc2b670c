"""When a run saves inside an epoch, and when a signal stops it: the same decision in every process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from vmamba.train.settings.config import TrainConfig
from vmamba.train.signals import StopSignals


@dataclass(frozen=True)
class Decision:
    """What is to be done now: whether to save, and the number of the signal to stop for, 0 = none."""

    save: bool
    stop: int


class Watch:
    """Asked after every update and every batch of a measurement.

    One process decides at once. Several agree every ``every`` steps, since asking the others waits for the device; a
    count of steps needs no agreement.
    """

    def __init__(self, config: TrainConfig, accelerator: Any, signals: StopSignals, every: int) -> None:
        self.steps = config.save_every_steps
        self.seconds = 60 * config.save_every_minutes
        self.accelerator = accelerator
        self.signals = signals
        self.every = every if accelerator.num_processes > 1 else 1
        self.saved()

    def saved(self) -> None:
        """A save is done; counts and clocks start anew."""
        self._asked = 0
        self._done = 0
        self._since = time.monotonic()

    def after_update(self, steps: int) -> Decision:
        """Decide after an update that took ``steps`` steps."""
        self._done += steps
        due = bool(self.steps) and self._done >= self.steps
        agreed = self._agree(steps)
        return Decision(due or agreed.save, agreed.stop)

    def after_batch(self) -> Decision:
        """Decide after a batch of a measurement, and before one: nothing is saved then unless to stop."""
        return Decision(False, self._agree(1).stop)

    def at_once(self) -> Decision:
        """Decide where all processes are at the same place, however long ago they agreed."""
        return Decision(False, self._agree(self.every).stop)

    def _agree(self, steps: int) -> Decision:
        self._asked += steps
        if self._asked < self.every:
            return Decision(False, 0)
        self._asked = 0
        late = bool(self.seconds) and time.monotonic() - self._since >= self.seconds
        mine = [float(late), float(self.signals.asked)]
        if self.accelerator.num_processes > 1:
            all_ = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device))
            mine = all_.max(0).values.tolist()
        return Decision(bool(mine[0]), int(mine[1]))
