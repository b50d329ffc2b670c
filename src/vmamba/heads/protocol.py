"""What every segmentation network offers, whoever trains, measures or exports it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.models.backbone import Backbone_VSSM


@runtime_checkable
class SegmentationModel(Protocol):
    """A network that gives every pixel a class.

    Attributes:
        config: what it is made of; `vmamba.heads.build_segmenter` builds it again from ``config.to_dict()``.
        backbone: whose maps the heads take.
        decode_head: the head whose logits are the answer.
        num_classes: how many.
        in_chans: image channels.
    """

    config: SegmenterConfig
    backbone: Backbone_VSSM
    decode_head: nn.Module
    num_classes: int
    in_chans: int

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to logits ``(b, num_classes, H, W)``."""

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images to the decode head's logits and the auxiliary head's, each ``(b, num_classes, h, w)`` at its stride.

        The second is None where there is no auxiliary head.
        """

    def __call__(self, *args: Any) -> Tensor:
        """As `forward`."""
