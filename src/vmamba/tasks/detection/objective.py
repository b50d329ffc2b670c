"""What training a detector minimises: the sum of Mask R-CNN's five losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from vmamba.errors import ConfigError
from vmamba.heads.mask_rcnn import Truth
from vmamba.tasks.protocol import BatchLoss, Settings


class DetectionLoss:
    """The sum of the losses of proposals, classes, boxes and masks, each of weight 1.

    Args:
        settings: the training configuration's.

    Raises:
        ConfigError: Mixup, CutMix or label smoothing is asked for.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.mixup or settings.cutmix or settings.label_smoothing:
            raise ConfigError(
                f"mixup={settings.mixup}, cutmix={settings.cutmix}, label_smoothing={settings.label_smoothing}: "
                "objects are not mixed; give 0 for each"
            )

    def prepare(self, batch: Any) -> Any:
        """Nothing changes."""
        return batch

    def loss(self, model: nn.Module, batch: Any) -> BatchLoss:
        """Of a batch as `vmamba.tasks.detection.items.collate` makes it."""
        pixels, sizes, _ = batch["inputs"]
        sizes = [(int(h), int(w)) for h, w in sizes]
        losses = model(pixels, sizes, None, [Truth(*parts) for parts in batch["truths"]])
        count = len(batch["truths"])
        total = sum(losses.values())
        return BatchLoss(total, count, {name: value.detach() * count for name, value in losses.items()})
