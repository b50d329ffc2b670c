"""Features of regions: which level of the pyramid a region is read from, and RoIAlign (Mask R-CNN, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Side in pixels of the regions that the second level begins with, halved: 2 · 56 = 112.
FINEST_SCALE = 56


def levels_of(boxes: Tensor, count: int) -> Tensor:
    """The level ``(n,)``, int64 in ``0..count-1``, of each of ``boxes (n, 4)`` in pixels (FPN, equation 1).

    Below 112 pixels, the root of the area, it is 0; with every doubling one more.
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.log2(size / FINEST_SCALE + 1e-6).floor().clamp(0, count - 1).long()


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int) -> Tensor:
    """RoIAlign of regions, each from the level for its size.

    Aligned to half pixels; samples in each bin as many as the region has places there, rounded up.

    Args:
        maps: levels ``(b, c, h_i, w_i)``.
        strides: pixels for each place of a level.
        boxes: ``(n_j, 4)`` for each image.
        size: side of the result.

    Returns:
        ``(n, c, size, size)``, the regions of the first image first.
    """
    from torchvision.ops import roi_align

    numbers = torch.cat([torch.full_like(own[:, :1], i) for i, own in enumerate(boxes)])
    everyone = torch.cat(list(boxes))
    rois = torch.cat([numbers, everyone], dim=1)
    levels = levels_of(everyone, len(maps))
    members, pooled = [], []
    for i, (level, stride) in enumerate(zip(maps, strides, strict=True)):
        members.append((levels == i).nonzero()[:, 0])
        # Levels without regions too: every parameter then has a gradient in every process of a distributed run.
        # In float32: 16 bits cannot say where in a large image a region lies.
        values = roi_align(level.float(), rois[members[-1]].float(), size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled.append(values.to(level.dtype))
    return torch.cat(pooled)[torch.cat(members).argsort()]
