"""What training on several labels minimises: binary cross-entropy of each label, their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.errors import ConfigError
from vmamba.tasks.protocol import BatchLoss, Settings


class BinaryCrossEntropy:
    """Binary cross-entropy in nats, the mean over labels and images.

    Args:
        settings: label smoothing moves 0 and 1 towards each other.
        weights: what an image that has a label counts beside one that has it not; empty: the same.

    Raises:
        ConfigError: Mixup or CutMix is asked for.
    """

    def __init__(self, settings: Settings, weights: Sequence[float] = ()) -> None:
        if settings.mixup or settings.cutmix:
            raise ConfigError(
                f"mixup={settings.mixup}, cutmix={settings.cutmix}: images of several labels are not mixed; "
                "give mixup=0 and cutmix=0"
            )
        self.smoothing = settings.label_smoothing or 0.0
        self.weights = torch.tensor(weights) if weights else None

    def prepare(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Nothing changes."""
        return batch

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> BatchLoss:
        """Of pixels ``(b, in_chans, H, W)`` and labels ``(b, classes)`` of 0 and 1."""
        images, labels = batch
        logits = model(images)
        wanted = labels.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        weights = None if self.weights is None else self.weights.to(logits)
        return BatchLoss(F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights), len(labels), {})
