"""Losses and gradients that are no numbers any more: found on the device, left out there, and read now and then.

Asking a GPU whether a loss is finite waits for all its work, so training asks only every ``log_every`` steps. Until
then the device itself leaves out the updates that would spoil the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.train.loop.rng import rng_state


@dataclass(frozen=True)
class Fault:
    """An update whose loss or gradient is not finite.

    Attributes:
        epoch: counted from 0.
        first: the update's first step of the epoch, counted from 0.
        last: and its last; they differ where gradients are accumulated.
        step: the step at which the first value was not finite.
        name: what is not finite, ``"loss"`` or ``"gradient norm"``; in another process if ``value`` is finite here.
        value: what it is instead.
        rng: `rng_state` before the update's first batch was prepared.
        fatal: whether there have been more than are allowed.
    """

    epoch: int
    first: int
    last: int
    step: int
    name: str
    value: float
    rng: dict[str, Any]
    fatal: bool

    def __str__(self) -> str:
        return f"the {self.name} is {self.value} at step {self.step + 1} of epoch {self.epoch + 1}"


@dataclass(frozen=True)
class _Update:
    steps: list[int]
    names: list[str]
    values: Tensor  # one for each name
    bad: Tensor  # bool
    rng: dict[str, Any]


class FiniteGuard:
    """Watches a run's updates, one after the other: `begin`, `see` for each value, `judge`; and `look` now and then.

    An update with a value that is not finite is to be left out. After more than ``allowed`` of them all further ones
    are, so that the weights stay as they were before the one that is fatal.

    Args:
        allowed: updates that may be left out in all.
        accelerator: the processes; what one of them finds, all leave out.
        left_out: how many have been so far.
    """

    def __init__(self, allowed: int, accelerator: Any, left_out: int = 0) -> None:
        self.allowed = allowed
        self.accelerator = accelerator
        self.left_out = left_out
        self._count = torch.full((), left_out, dtype=torch.int64, device=accelerator.device)
        self._updates: list[_Update] = []
        self._seen: list[tuple[int, str, Tensor]] = []
        self._rng: dict[str, Any] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def begin(self, model: nn.Module) -> None:
        """Before an update's first batch: remember the generators, and what a forward pass changes in ``model``."""
        self._rng = rng_state()
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def see(self, step: int, name: str, value: Tensor) -> None:
        """Note a scalar on any device, of a step of the epoch counted from 0."""
        self._seen.append((step, name, value.detach()))

    def judge(self) -> Tensor:
        """Whether the update is to be left out: a bool on the device. The model's buffers are put back if so."""
        steps, names, scalars = zip(*self._seen, strict=True)
        values = torch.stack([scalar.float().reshape(()) for scalar in scalars])
        bad = ~torch.isfinite(values).all()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        out = bad | (self._count > self.allowed)
        self._count = self._count + out
        for buffer, before in self._buffers:
            buffer.copy_(torch.where(out, before, buffer))
        self._updates.append(_Update(list(steps), list(names), values, bad, self._rng))
        self._seen = []
        return out

    def look(self, epoch: int) -> list[Fault]:
        """The faults of ``epoch`` since the last look, up to the first fatal one; waits for the device."""
        updates, self._updates = self._updates, []
        if not updates or not torch.stack([update.bad for update in updates]).any().item():
            return []
        faults: list[Fault] = []
        for update in updates:
            if not update.bad.item():
                continue
            self.left_out += 1
            values = update.values.tolist()
            wrong = (~torch.isfinite(update.values)).tolist()
            place = wrong.index(True) if True in wrong else len(wrong) - 1
            fatal = self.left_out > self.allowed
            step, name = update.steps[place], update.names[place]
            faults.append(Fault(epoch, update.steps[0], update.steps[-1], step, name, values[place], update.rng, fatal))
            if fatal:
                break
        return faults
