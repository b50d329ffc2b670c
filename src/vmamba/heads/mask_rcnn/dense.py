"""The part of the detector that computes the same for every image, and so can be exported."""

from __future__ import annotations

from torch import Tensor, nn

from vmamba.heads.mask_rcnn.model import MaskRCNN


class DensePart(nn.Module):
    """Backbone, feature pyramid and the proposals' head of a detector, whose weights it shares.

    What follows takes another course for every image: as many boxes as there are, their suppression, the regions'
    pooling and pasting. `torch.export` takes this part; the rest runs in Python.
    """

    def __init__(self, detector: MaskRCNN) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.rpn_head = detector.rpn_head

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Images ``(b, c, H, W)`` to the pyramid's levels, and the scores and deltas of each, see `RPNHead`."""
        levels = self.neck(self.backbone(x))
        scores, deltas = self.rpn_head(levels)
        return tuple(levels), tuple(scores), tuple(deltas)
