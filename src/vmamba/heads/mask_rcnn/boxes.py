"""Boxes ``x1, y1, x2, y2`` in pixels: their overlap, their coding as deltas, and the suppression of near doubles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Deltas of width and height are limited to this on both sides: a box changes its size at most by 1000 / 16.
MAX_LOG_RATIO = math.log(1000 / 16)

#: From this many boxes on groups are suppressed one by one instead of all at once, shifted apart.
MOST_SHIFTED = 10_000


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of ``a (n, 4)`` with every box of ``b (m, 4)``: ``(n, m)``.

    The area is ``(x2 - x1)(y2 - y1)``; two empty boxes have an IoU of 0.
    """
    sides = [
        (torch.minimum(a[:, None, axis + 2], b[None, :, axis + 2]) - torch.maximum(a[:, None, axis], b[None, :, axis]))
        for axis in (0, 1)
    ]
    common = sides[0].clamp_(min=0) * sides[1].clamp_(min=0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return common / union.clamp(min=1e-6)


def encode(boxes: Tensor, targets: Tensor, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The deltas ``(n, 4)`` that `decode` turns ``boxes (n, 4)`` with into ``targets (n, 4)`` (R-CNN, appendix C)."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    target_centre = (targets[:, :2] + targets[:, 2:]) * 0.5
    deltas = torch.cat([(target_centre - centre) / size, (target_size / size).log()], dim=1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Tensor,
    deltas: Tensor,
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    image_size: tuple[int, int] | None = None,
) -> Tensor:
    """Move and scale boxes by predicted deltas (R-CNN, appendix C).

    Args:
        boxes: ``(n, 4)``.
        deltas: ``(n, 4)``: shift of the centre over the size, logarithm of the change of size, each over ``stds``.
        stds: by which the deltas were divided.
        image_size: ``(h, w)`` in pixels, the image without padding, which the result is clipped to.

    Returns:
        ``(n, 4)``.
    """
    deltas = deltas * deltas.new_tensor(stds)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    moved = torch.cat([centre - half, centre + half], dim=1)
    return moved if image_size is None else clip(moved, image_size)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """``boxes (n, 4)`` cut at the border of an image ``(h, w)``: x in [0, w], y in [0, h]."""
    h, w = image_size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([w, h, w, h]))


def not_empty(boxes: Tensor) -> Tensor:
    """Which of ``boxes (n, 4)`` have a width and a height above 0."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression within groups (levels of the pyramid, or classes).

    A box is dropped if its IoU with a kept box of its group and a better score is above ``iou``.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.
        groups: ``(n,)``, whole numbers from 0.
        iou: the threshold.

    Returns:
        The indices of the boxes kept, best first.
    """
    from torchvision.ops import nms

    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    if len(boxes) < MOST_SHIFTED:
        # As the official models do it, down to the rounding: one run over all boxes, the groups moved out of each
        # other's reach in the boxes' own precision.
        shifted = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
        indices: Tensor = nms(shifted, scores, iou)
        return indices
    kept = []
    for group in groups.unique().tolist():
        members = (groups == group).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], iou)])
    indices = torch.cat(kept).sort().values
    return indices[scores[indices].sort(descending=True, stable=True).indices]
