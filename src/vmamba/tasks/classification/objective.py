"""What training a classifier minimises: cross-entropy, with smoothed labels and mixed images where asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vmamba.tasks.protocol import BatchLoss, Settings

#: Pixels ``(b, in_chans, H, W)``, class indices ``(b,)``, and what to learn: those indices, or after mixing ``(b,
#: classes)`` shares.
Prepared = tuple[Tensor, Tensor, Tensor]


class CrossEntropy:
    """Cross-entropy in nats, of Mixup's and CutMix's images where ``settings`` ask for them.

    Args:
        settings: the training configuration's.
        classes: how many.
        weights: what an image of each class counts; empty where all count 1.
    """

    def __init__(self, settings: Settings, classes: int, weights: Sequence[float] = ()) -> None:
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
        # The mean is taken over images, whatever they weigh, so that it does not depend on how they fall into batches.
        weight, reduction = (torch.tensor(weights), "none") if weights else (None, "mean")
        self.criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction=reduction)

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
        loss = self.criterion.to(logits.device)(logits, shares).mean()
        with torch.no_grad():
            right = (logits.argmax(1) == targets).sum()
        return BatchLoss(loss, len(targets), {"accuracy": right})
