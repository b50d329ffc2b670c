"""Anchors: the boxes that proposals start from, at every place of every level (Faster R-CNN, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors of a place at the origin: ``(len(ratios) · len(scales), 4)``, ratios outermost, float32.

    For the scale ``a`` and the ratio ``r`` (height over width) the width is ``a · stride / √r`` and the height
    ``a · stride · √r``.
    """
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    side = torch.tensor(scales, dtype=torch.float32)[None, :]
    half_w = (stride * (1 / root) * side).flatten() * 0.5
    half_h = (stride * root * side).flatten() * 0.5
    return torch.stack([-half_w, -half_h, half_w, half_h], dim=1)


def level_anchors(base: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The anchors of a level of ``size (h, w)``: ``(h · w · len(base), 4)``, by row, column, then anchor.

    Centres are at ``(column · stride, row · stride)``, without an offset of half a place.
    """
    h, w = size
    y = torch.arange(h, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(w, device=base.device, dtype=base.dtype) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (base[None] + shifts).reshape(-1, 4)


def inside(size: tuple[int, int], padded: tuple[int, int], stride: int, count: int, device: torch.device) -> Tensor:
    """Which anchors of a level belong to an image of a batch.

    Args:
        size: the level's ``(h, w)``, of the whole batch.
        padded: the image's own padded ``(h, w)`` in pixels.
        stride: the level's.
        count: anchors at each place.
        device: of the result.

    Returns:
        ``(h · w · count,)``, bool, in the order of `level_anchors`.
    """
    h, w = (torch.arange(n, device=device) * stride < limit for n, limit in zip(size, padded, strict=True))
    return (h[:, None] & w[None, :]).flatten().repeat_interleave(count)
