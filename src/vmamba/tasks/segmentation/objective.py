"""What training a segmenter minimises: cross entropy of pixels, with Dice where asked for, of both heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.errors import ConfigError
from vmamba.tasks.protocol import BatchLoss, Settings
from vmamba.tasks.segmentation.options import TrainingOptions


class PixelLoss:
    """Of each head, at the labels' size: cross entropy, and where asked for Dice loss added; their weighted sum.

    The cross entropy is upstream's: summed over pixels, each times its class's weight, and divided by the number of all
    pixels, ignored ones included. The Dice loss is segmentation-models-pytorch's: 1 − 2·Σpy / Σ(p + y), of each class
    over the whole batch, the mean of those that occur in its labels.

    Args:
        settings: the training configuration's.
        options: the task's.
        weights: what a pixel of each class counts; empty where all count 1.

    Raises:
        ConfigError: Mixup, CutMix or label smoothing is asked for, or Dice without segmentation-models-pytorch.
    """

    def __init__(self, settings: Settings, options: TrainingOptions, weights: Sequence[float] = ()) -> None:
        if settings.mixup or settings.cutmix or settings.label_smoothing:
            raise ConfigError(
                f"mixup={settings.mixup}, cutmix={settings.cutmix}, label_smoothing={settings.label_smoothing}: "
                "pixels' classes are not mixed; give 0 for each"
            )
        self.options = options
        self.weights = torch.tensor(weights) if weights else None
        self.dice: nn.Module | None = None
        if options.loss == "dice":
            try:
                from segmentation_models_pytorch.losses import DiceLoss
            except ImportError as error:
                raise ConfigError(
                    "loss=dice needs segmentation-models-pytorch, which is not installed: "
                    "pip install segmentation-models-pytorch"
                ) from error
            self.dice = DiceLoss("multiclass", ignore_index=options.ignore_index)

    def prepare(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Nothing changes."""
        return batch

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> BatchLoss:
        """Of pixels ``(b, in_chans, H, W)`` and classes ``(b, H, W)``; beside it the share of pixels that are right."""
        pixels, labels = batch
        decode, auxiliary = model(pixels, own_strides=True)
        scores = _at(decode, labels)
        loss = self._of(scores, labels)
        if auxiliary is not None and self.options.auxiliary_weight:
            loss = loss + self.options.auxiliary_weight * self._of(_at(auxiliary, labels), labels)
        with torch.no_grad():
            known = labels != self.options.ignore_index
            right = ((scores.argmax(1) == labels) & known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
        return BatchLoss(loss, len(labels), {"aacc": right.sum()})

    def _of(self, scores: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores)
        ignore = self.options.ignore_index
        loss = F.cross_entropy(scores, labels, weights, ignore_index=ignore, reduction="sum") / labels.numel()
        return loss if self.dice is None else loss + self.dice(scores, labels)


def _at(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores at the labels' size, in float32 or wider."""
    full = scores if scores.dtype.itemsize >= 4 else scores.float()
    return F.interpolate(full, labels.shape[1:], mode="bilinear", align_corners=False)
