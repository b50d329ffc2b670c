"""A few convolutions on one map (arXiv 1411.4038) with the keys of OpenMMLab's ``FCNHead``: the auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vmamba.architecture.decoders import FCNHeadConfig
from vmamba.heads.blocks import ConvBlock, classes


class FCNHead(nn.Module):
    """Convolutions on the map ``config.in_index``, then classes.

    Args:
        config: its options.
        in_channels: of all maps, finest first.
        num_classes: of the logits.
    """

    def __init__(self, config: FCNHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.in_index = config.in_index
        width, side = in_channels[config.in_index], config.kernel_size
        channels = config.channels if config.num_convs else width
        self.conv_seg = classes(channels, num_classes)
        self.dropout = nn.Dropout2d(config.dropout_ratio)
        blocks = [ConvBlock(width if i == 0 else channels, channels, side) for i in range(config.num_convs)]
        self.convs = nn.Sequential(*blocks)
        self.conv_cat = ConvBlock(width + channels, channels, side) if config.concat_input else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(b, c_i, h_i, w_i)`` to logits ``(b, num_classes, h, w)`` at the size of its map."""
        given = maps[self.in_index]
        x: Tensor = self.convs(given)
        if self.conv_cat is not None:
            x = self.conv_cat(torch.cat([given, x], 1))
        logits: Tensor = self.conv_seg(self.dropout(x))
        return logits
