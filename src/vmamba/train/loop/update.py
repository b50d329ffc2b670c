"""From gradients to weights: which batches make an update, and how it is done, or left out, without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vmamba._torch import move_towards
from vmamba.train.settings.config import TrainConfig


class UpdateGroup:
    """The batches between two updates of the weights: the gradient is the mean over their samples.

    The last batch of an epoch ends a group however few there are, and each sample weighs the same in a group whose
    last batch is smaller.
    """

    def __init__(self, config: TrainConfig, steps: int) -> None:
        self.size = config.grad_accumulation
        self.full = self.size * (config.batch_size or 1)  # samples
        self.steps = steps
        self.seen = 0

    def begins(self, step: int) -> bool:
        """Whether this step of the epoch, counted from 0, is the first since an update."""
        return step % self.size == 0

    def ends(self, step: int) -> bool:
        """Whether the weights are updated after this step of the epoch, counted from 0."""
        return (step + 1) % self.size == 0 or step + 1 == self.steps

    def share(self, loss: Tensor, count: int) -> Tensor:
        """What a batch's mean loss adds to the mean over a full group. Scaling first keeps fp16 in its range."""
        self.seen += count
        return loss if count == self.full else loss * (count / self.full)

    def finish(self, model: nn.Module, accelerator: Any) -> None:
        """Turn the gradient into the mean over the samples that there were, and begin anew."""
        seen, self.seen = self.seen, 0
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if accelerator.num_processes > 1:  # whose gradients have been averaged; how many others saw, nobody waits for
            counts = accelerator.reduce(torch.full((), float(seen), device=accelerator.device), "mean")
            for gradient in gradients:
                gradient *= self.full / counts
        elif seen not in (0, self.full):
            for gradient in gradients:
                gradient *= self.full / seen


class Updater:
    """Does updates with an optimizer and follows them with the moving average, or leaves both as they are.

    Whether to leave an update out is known on the device. A fused optimizer on a GPU decides there as well, through the
    word that loss scaling has for it. Elsewhere the answer is read, which on a CPU costs nothing, and which the loss
    scaler waits for anyway.

    Args:
        accelerator: the processes, and the loss scaler.
        optimizer: as accelerate wraps it.
        ema: timm's moving average, or None.
    """

    def __init__(self, accelerator: Any, optimizer: Any, ema: Any) -> None:
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.ema = ema
        on_gpu = accelerator.device.type == "cuda" and accelerator.scaler is None
        self.on_device = on_gpu and bool(optimizer.defaults.get("fused"))

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """Scale the gradient down to a norm of ``limit``, 0 = as it is; returns the norm that it had."""
        norm: Tensor = self.accelerator.clip_grad_norm_(model.parameters(), limit or float("inf"))
        return norm.detach()

    def update(self, model: nn.Module, number: int, leave_out: Tensor) -> None:
        """Change weights and average, unless ``leave_out`` (a bool on the device); the gradient is gone afterwards.

        Args:
            model: the unwrapped model.
            number: of the update, from 1.
            leave_out: whether the update is dropped.
        """
        if self.on_device:
            self.optimizer.optimizer.found_inf = leave_out.float()
            self.optimizer.step()
            if self.ema is not None:
                self._follow(model, number, leave_out)
        elif not leave_out.item():
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(model, number)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # as its own step does after an overflow
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _follow(self, model: nn.Module, number: int, leave_out: Tensor) -> None:
        share = (1.0 - self.ema.get_decay(number)) * (~leave_out).float()
        pairs = list(zip(self.ema.module.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [(average, value) for average, value in pairs if average.is_floating_point()]
        move_towards([average for average, _ in floating], [value for _, value in floating], share)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


class RunningSums:
    """Sums over an epoch's samples, kept on the device: of the loss, of the other figures, and of ones.

    Batches whose loss is not finite are left out.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.values = torch.zeros(len(names) + 1, device=device)

    def add(self, loss: Tensor, sums: Mapping[str, Tensor], count: int) -> None:
        """One batch: its mean loss, and the others' sums."""
        others = [sums[name].float() for name in self.names[1:]]
        batch = torch.stack([loss.float() * count, *others, self.values.new_full((), count)])
        self.values += torch.where(torch.isfinite(loss), batch, torch.zeros_like(batch))

    def means(self, values: Tensor | None = None) -> tuple[dict[str, float], float]:
        """The means so far by name, and the number of samples; waits for the device.

        ``values`` are sums over all processes; by default this one's.
        """
        *totals, count = (self.values if values is None else values).tolist()
        return {name: total / max(count, 1.0) for name, total in zip(self.names, totals, strict=True)}, count
