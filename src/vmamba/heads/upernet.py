"""UPerNet's decode head (arXiv 1807.10221) with the keys of OpenMMLab's ``UPerHead``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vmamba.architecture.decoders import UPerHeadConfig
from vmamba.errors import InputError
from vmamba.functional.pyramid import resize
from vmamba.heads.blocks import AdaptivePool, ConvBlock, PyramidBlock, classes


class UPerHead(nn.Module):
    """Pyramid pooling (arXiv 1612.01105) on the coarsest map, then a feature pyramid (arXiv 1612.03144).

    Args:
        config: its options.
        in_channels: of the maps, finest first.
        num_classes: of the logits.
    """

    gives_full_size = False

    def __init__(self, config: UPerHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, scales = config.channels, config.pool_scales
        *finer, coarsest = in_channels
        self.pool_scales = scales
        self.conv_seg = classes(channels, num_classes)
        self.dropout = nn.Dropout2d(config.dropout_ratio)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AdaptivePool(side), ConvBlock(coarsest, channels, 1)) for side in scales
        )
        self.bottleneck = PyramidBlock([coarsest, *[channels] * len(scales)], channels)
        self.lateral_convs = nn.ModuleList(ConvBlock(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = PyramidBlock([channels] * len(in_channels), channels)

    def forward(self, maps: Sequence[Tensor], image: Tensor | None = None) -> Tensor:
        """Maps ``(b, c_i, h_i, w_i)``, finest first, to logits ``(b, num_classes, h_0, w_0)``.

        Args:
            maps: the backbone's.
            image: what they come from; other decoders take it, this one does not.

        Raises:
            InputError: one image in training, where the mean over it leaves batch norm a single value.
        """
        *finer, top = maps
        if self.training and len(top) == 1 and 1 in self.pool_scales:
            raise InputError(
                "UPerNet's pooling to one place leaves batch norm a single value where a batch is a single image; "
                "train with two images or more, drop a last batch of one, or use model.eval()"
            )
        levels = [lateral(each) for lateral, each in zip(self.lateral_convs, finer, strict=True)]
        levels.append(self.bottleneck([top, *(pool(top) for pool in self.psp_modules)]))
        for i in range(len(finer), 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:])
        smoothed = [conv(each) for conv, each in zip(self.fpn_convs, levels[:-1], strict=True)]
        fused = self.fpn_bottleneck([*smoothed, levels[-1]])
        logits: Tensor = self.conv_seg(self.dropout(fused))
        return logits
