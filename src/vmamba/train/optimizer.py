"""How the weights are updated: optimizer and learning-rate schedule, by timm's factories."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vmamba.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW by timm's factory, which leaves vectors and the model's ``no_weight_decay`` parameters undecayed."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    return create_optimizer_v2(
        model,
        opt="adamw",
        lr=config.lr,
        weight_decay=config.weight_decay or 0.0,
        layer_decay=None if config.layer_decay == 1.0 else config.layer_decay,
    )


def make_scheduler(optimizer: Any, config: TrainConfig, updates_per_epoch: int) -> Any:
    """Linear warm-up, then a cosine down to ``min_lr``, stepped at every update."""
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    epochs, warmup = config.epochs or 1, config.warmup_epochs or 0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs - warmup,
        min_lr=config.min_lr,
        warmup_lr=(config.lr or 0.0) / 100,
        warmup_epochs=warmup,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
