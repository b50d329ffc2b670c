"""What segmenters are trained with, as plain functions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vmamba.errors import InputError


def segmentation_loss(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross entropy of every pixel, at the target's size, summed and divided by the number of *all* pixels.

    The ignored pixels count in the divisor, as in OpenMMLab's loss with its defaults.

    Args:
        logits: ``(b, classes, h, w)`` at any stride, resized bilinearly to the target's size.
        target: ``(b, H, W)``, int64: the classes, or ``ignore_index``.
        ignore_index: what to leave out.

    Returns:
        a scalar, in float32 or wider.

    Raises:
        InputError: the shapes do not fit.
    """
    if logits.dim() != 4 or target.dim() != 3 or len(logits) != len(target):
        raise InputError(
            f"logits must be (b, classes, h, w) and the target (b, H, W); given {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    # Half precision would lose the small differences that a sum over a million pixels is made of.
    full = logits if logits.dtype.itemsize >= 4 else logits.float()
    resized = F.interpolate(full, size=target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, target, ignore_index=ignore_index, reduction="sum") / target.numel()
