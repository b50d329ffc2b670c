"""Which true box each anchor or proposal belongs to, and which of them are learnt from."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.heads.mask_rcnn.boxes import box_iou

#: What `assign` says of a box that is neither an object nor background.
IGNORED = -1


def assign(boxes: Tensor, truth: Tensor, positive: float, negative: float, min_positive: float) -> Tensor:
    """The true box of every box (Faster R-CNN, section 3.1.2).

    A box from an IoU of ``positive`` on belongs to the true box that it overlaps most; below ``negative`` it is
    background. Then every true box takes all boxes that share its best IoU, if that is at least ``min_positive``;
    where several would take one, the last does.

    Args:
        boxes: ``(n, 4)``.
        truth: ``(g, 4)``.
        positive: threshold.
        negative: threshold.
        min_positive: threshold.

    Returns:
        ``(n,)``, int64: `IGNORED`, 0 for background, or i + 1 for the true box i.
    """
    if len(truth) == 0 or len(boxes) == 0:
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    iou = box_iou(boxes, truth)
    best, index = iou.max(dim=1)
    assigned = torch.full_like(index, IGNORED)
    assigned[best < negative] = 0
    assigned = torch.where(best >= positive, index + 1, assigned)
    best_of_truth = iou.max(dim=0).values
    takes = (iou == best_of_truth) & (best_of_truth >= min_positive)
    # The last true box has the largest number.
    taken = (takes * torch.arange(1, len(truth) + 1, device=boxes.device)).max(dim=1).values
    return torch.where(taken > 0, taken, assigned)


def sample(
    assigned: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw boxes to learn from.

    Args:
        assigned: ``(n,)``, as `assign` gives it.
        count: boxes in all, fewer where there are not so many.
        positive_fraction: at most this share of ``count`` are positive; background fills the rest.
        generator: of random numbers, on the CPU; None: torch's own.

    Returns:
        Indices of the positive ones and of the background, each in ascending order.
    """
    positive = _draw((assigned > 0).nonzero()[:, 0], int(count * positive_fraction), generator)
    return positive, _draw((assigned == 0).nonzero()[:, 0], count - len(positive), generator)


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    if len(indices) <= count:
        return indices
    # On the CPU: the same numbers on every device.
    chosen = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return indices[chosen.to(indices.device)]
