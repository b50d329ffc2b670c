"""What decode heads are made of, on maps ``(b, c, h, w)``. Submodules carry OpenMMLab's names, so that its keys fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.functional.pyramid import convolve_pyramid


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU; the map keeps its size but for ``stride``."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in_channels, h, w) → (b, channels, h', w')``."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class PyramidBlock(ConvBlock):
    """A `ConvBlock` over maps of several resolutions, resized to the first one's and concatenated."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__(sum(in_channels), channels, kernel_size=3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Maps ``(b, c_i, h_i, w_i)`` to ``(b, channels, h_0, w_0)``."""
        return F.relu(self.bn(convolve_pyramid(maps, self.conv.weight, self.conv.bias)), inplace=True)


class AdaptivePool(nn.Module):
    """Adaptive average pooling to ``(side, side)``: place ``i`` is the mean over ``⌊i·h/side⌋ … ⌈(i+1)·h/side⌉``."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, h, w) → (b, c, side, side)``."""
        if not torch.compiler.is_compiling():
            return F.adaptive_avg_pool2d(x, self.side)
        # Exporters have no adaptive pooling where the size is open; products with these matrices they all have.
        down, across = (self._means(size, x) for size in x.shape[2:])
        return down @ x @ across.T

    def _means(self, size: int, like: Tensor) -> Tensor:
        """``(side, size)``: each row averages."""
        row = torch.arange(self.side, device=like.device)[:, None]
        place = torch.arange(size, device=like.device)[None]
        inside = ((place >= row * size // self.side) & (place * self.side < (row + 1) * size)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def classes(channels: int, num_classes: int, kernel_size: int = 1) -> nn.Conv2d:
    """The convolution that gives every place its classes."""
    conv = nn.Conv2d(channels, num_classes, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
