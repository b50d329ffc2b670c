"""One convolution over maps of several resolutions, resized and put side by side, without making them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize ``(b, c, h, w) → (b, c, *size)``, corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def convolve_pyramid(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 3×3 convolution, padding 1, of all maps resized to the first one's size and concatenated.

    Convolution and resize are linear, and a resize does not mix channels. So a coarse map's part may be computed in
    another order: first the product over channels, for each of the nine taps, at the map's own few places; then each
    tap's result is resized, shifted and summed, which is a product with a small matrix along either axis. For maps of
    1/2, 1/4 and 1/8 of the side these are a third of the multiply-adds, and neither the resized maps nor their
    concatenation are ever in memory.

    Args:
        maps: ``(b, c_i, h_i, w_i)`` each; the first one decides the size.
        weight: ``(o, Σ c_i, 3, 3)``.
        bias: ``(o)`` or None.

    Returns:
        ``(b, o, h_0, w_0)``.
    """
    first, *rest = maps
    size = first.shape[2:]
    parts = weight.split([each.shape[1] for each in maps], dim=1)
    # A traced graph holds one order for all sizes, and a GPU would rather have one large convolution.
    if torch.compiler.is_compiling() or weight.device.type != "cpu":
        return F.conv2d(torch.cat([first, *(resize(each, size) for each in rest)], 1), weight, bias, padding=1)
    direct = [(first, parts[0])]
    coarse: list[tuple[Tensor, Tensor]] = []
    for each, part in zip(rest, parts[1:], strict=True):
        few = 2 * each.shape[2] * each.shape[3] <= first.shape[2] * first.shape[3]
        (coarse if few else direct).append((each, part))
    joined = [each if each.shape[2:] == size else resize(each, size) for each, _ in direct]
    x = joined[0] if len(joined) == 1 else torch.cat(joined, 1)
    taps = direct[0][1] if len(direct) == 1 else torch.cat([part for _, part in direct], 1)
    y = F.conv2d(x, taps, bias, padding=1).permute(0, 2, 3, 1).contiguous()
    for each, part in coarse:
        y = _add_coarse(y, each, part)
    return y.permute(0, 3, 1, 2)


def _add_coarse(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y (b, H, W, o)`` plus the convolution of ``x (b, c, h, w)`` resized to ``(H, W)``."""
    b, height, width, out = y.shape
    _, c, h, w = x.shape
    # Columns: horizontal tap, vertical tap, output channel.
    mixed = x.permute(0, 2, 3, 1).reshape(b * h * w, c) @ weight.permute(1, 3, 2, 0).reshape(c, 9 * out)
    across = torch.matmul(_resize_and_shift(w, width, y), mixed.view(b * h, w * 3, 3 * out))
    across = across.view(b, h, width, 3, out).transpose(2, 3).reshape(b, h * 3, width * out)
    down = _resize_and_shift(h, height, y).expand(b, -1, -1)
    return torch.baddbmm(y.reshape(b, height, width * out).to(across.dtype), down, across).view(b, height, width, out)


def _resize_and_shift(old: int, new: int, like: Tensor) -> Tensor:
    """``(new, 3·old)``: from three taps' values at each of ``old`` places to their sum at ``new`` places.

    Row ``i`` reads tap ``t`` at the resized place ``i + t - 1``, and nothing outside of the map.
    """
    eye = torch.eye(old, dtype=torch.float32, device=like.device)
    weights = F.interpolate(eye[None], size=new, mode="linear", align_corners=False)[0].T
    padded = F.pad(weights, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + new] for tap in range(3)], dim=2).flatten(1).to(like.dtype)
