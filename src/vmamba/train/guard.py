"""Losses that are no numbers any more, found without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.errors import TrainingError


class FiniteGuard:
    """Stops training at the first loss or norm that is not finite; looks at every ``every``-th, since looking waits."""

    def __init__(self, epoch: int, every: int) -> None:
        self.epoch = epoch
        self.every = every
        self.seen: list[tuple[int, str, Tensor]] = []

    def see(self, step: int, name: str, value: Tensor) -> None:
        """Note a scalar on any device.

        Raises:
            TrainingError: as `check`, at every ``every``-th call.
        """
        self.seen.append((step, name, value))
        if len(self.seen) >= self.every:
            self.check()

    def check(self) -> None:
        """Look at what was noted since.

        Raises:
            TrainingError: one of it is not finite; names the step.
        """
        seen, self.seen = self.seen, []
        if not seen:
            return
        finite = torch.isfinite(torch.stack([value.float().reshape(()) for _, _, value in seen])).tolist()
        if not all(finite):
            step, name, value = seen[finite.index(False)]
            raise TrainingError(
                f"the {name} is {value.item()} at step {step + 1} of epoch {self.epoch + 1}. The weights of the last "
                "whole epoch are kept. Start again with a lower lr or a longer warm-up, or with mixed_precision=no if "
                "it is on"
            )
