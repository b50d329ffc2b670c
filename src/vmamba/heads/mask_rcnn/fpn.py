"""The feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.architecture.detectors import NeckConfig


class Conv(nn.Module):
    """A convolution with bias, under the name ``conv`` that the official checkpoints give it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in, h, w) → (b, out, h, w)``."""
        y: Tensor = self.conv(x)
        return y


class FPN(nn.Module):
    """Maps of every stride, each with the coarser ones' meaning."""

    def __init__(self, config: NeckConfig) -> None:
        super().__init__()
        channels = config.out_channels
        self.extra_levels = config.num_outs - len(config.in_channels)
        self.lateral_convs = nn.ModuleList(Conv(width, channels, 1) for width in config.in_channels)
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3) for _ in config.in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``(b, in_i, h_i, w_i)``, fine to coarse, to ``num_outs`` levels ``(b, out, h_i, w_i)``.

        Further levels take every second row and column of the one before.
        """
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            # By size, not by a factor of two: a map of odd size is not twice the next one.
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        for _ in range(self.extra_levels):
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels
