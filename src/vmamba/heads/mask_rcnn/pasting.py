"""Masks of boxes brought into the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample the map of each box bilinearly at the centres of the image's pixels.

    Args:
        probabilities: ``(n, s, s)``, of each box's pixels being its object's.
        boxes: ``(n, 4)`` in pixels of the image; they are not rounded.
        size: the image's ``(h, w)``.
        threshold: from which probability on a pixel is part of the mask.

    Returns:
        ``(n, h, w)``, bool.
    """
    h, w = size
    masks = torch.zeros(len(boxes), h, w, dtype=torch.bool, device=boxes.device)
    probabilities, boxes = probabilities.float(), boxes.float()
    # A mask is empty outside its box: only the pixels around it are computed, one margin of a pixel included.
    low = (boxes[:, :2].floor() - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:].ceil() + 1, boxes.new_tensor([w, h]))
    windows = torch.cat([low, high], dim=1).long().tolist()
    for probability, box, mask, (x1, y1, x2, y2) in zip(probabilities, boxes, masks, windows, strict=True):
        if x2 > x1 and y2 > y1:
            mask[y1:y2, x1:x2] = resample_mask(probability, box, (x1, y1, x2, y2)) >= threshold
    return masks


def resample_mask(probability: Tensor, box: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """One map at the pixels of a window of the image, 0 outside the box."""
    x1, y1, x2, y2 = window
    x = _relative(torch.arange(x1, x2, device=box.device), box[0], box[2])
    y = _relative(torch.arange(y1, y2, device=box.device), box[1], box[3])
    grid = torch.stack([x[None, :].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    return F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]


def _relative(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where pixels' centres lie between the sides of a box: -1 at the first, 1 at the other."""
    place = (pixels.to(start) + 0.5 - start) / (end - start) * 2 - 1
    return torch.where(place.isinf(), torch.zeros_like(place), place)  # a box without width, or height
