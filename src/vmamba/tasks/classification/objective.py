"""What training a classifier minimises: cross-entropy, with smoothed labels and mixed images where asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba.tasks.protocol import BatchLoss, Settings

#: Pixels ``(b, in_chans, H, W)``, class indices ``(b,)``, and what to learn: those indices, or after mixing ``(b,
#: classes)`` shares.
Prepared = tuple[Tensor, Tensor, Tensor]


class CrossEntropy:
    """Cross-entropy in nats, of Mixup's and CutMix's images where ``settings`` ask for them."""

    def __init__(self, settings: Settings, classes: int) -> None:
        smoothing = settings.label_smoothing or 0.0
        self.mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        if settings.mixup or settings.cutmix:
            from timm.data.mixup import Mixup

            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=settings.mixup or 0.0,
                cutmix_alpha=settings.cutmix or 0.0,
                label_smoothing=smoothing,
                num_classes=classes,
            )
            smoothing = 0.0  # already in the mixed targets
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def prepare(self, batch: tuple[Tensor, Tensor]) -> Prepared:
        """Mix the images in pairs; of an odd number one is mixed with itself, which leaves it as it is."""
        images, targets = batch
        if self.mixup is None:
            return images, targets, targets
        count = len(images)
        if count % 2 == 0:
            mixed, shares = self.mixup(images, targets)
            return mixed, targets, shares
        # timm pairs the first with the last, and so on, and wants an even number.
        mixed, shares = self.mixup(torch.cat([images, images[:1]]), torch.cat([targets, targets[:1]]))
        return mixed[:count], targets, shares[:count]

    def loss(self, model: nn.Module, batch: Prepared) -> BatchLoss:
        """Of a prepared batch; an image counts as right by its own label, mixed or not."""
        images, targets, shares = batch
        logits = model(images)
        loss = self.criterion(logits, shares)
        with torch.no_grad():
            right = (logits.argmax(1) == targets).sum()
        return BatchLoss(loss, len(targets), {"accuracy": right})
