"""The mask head: a small map for each class of each region (Mask R-CNN, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.architecture.detectors import MaskHeadConfig
from vmamba.heads.mask_rcnn.fpn import Conv


class MaskHead(nn.Module):
    """Convolutions, one step up, and one map for each class."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.conv_out_channels
        self.convs = nn.ModuleList(
            Conv(config.in_channels if i == 0 else width, width, 3) for i in range(config.num_convs)
        )
        self.upsample = nn.ConvTranspose2d(width if config.num_convs else config.in_channels, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, config.num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def size(self) -> int:
        """Side of a map."""
        return 2 * self.config.roi_size

    def forward(self, x: Tensor) -> Tensor:
        """Pooled regions ``(n, c, s, s)`` to logits ``(n, classes, 2s, 2s)``."""
        for conv in self.convs:
            x = F.relu(conv(x))
        logits: Tensor = self.conv_logits(F.relu(self.upsample(x)))
        return logits


def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The map ``(n, s, s)`` of each region's own class out of ``logits (n, classes, s, s)``."""
    return logits[torch.arange(len(labels), device=labels.device), labels]
