"""The box head: the class of each region, and its box for each class (Fast R-CNN, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.architecture.detectors import BoxHeadConfig
from vmamba.heads.mask_rcnn.boxes import decode, suppress


@dataclass(frozen=True)
class ScoredBoxes:
    """Boxes of one image with a class and a score.

    Attributes:
        boxes: ``(n, 4)`` in pixels of the network's input.
        scores: ``(n,)``, in 0..1.
        labels: ``(n,)``, int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class BoxHead(nn.Module):
    """Two hidden layers that classification and boxes share."""

    def __init__(self, config: BoxHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.fc_out_channels
        # In the order of the official checkpoints' keys; the last class is the background.
        self.fc_cls = nn.Linear(width, config.num_classes + 1)
        self.fc_reg = nn.Linear(width, 4 * config.num_classes)
        hidden = [nn.Linear(config.in_channels * config.roi_size**2, width), nn.Linear(width, width)]
        self.shared_fcs = nn.ModuleList(hidden)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in hidden:
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.fc_cls, self.fc_reg, *hidden):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled regions ``(n, c, roi_size, roi_size)`` to logits ``(n, classes + 1)`` and deltas ``(n, 4 · classes)``.

        The last logit is the background's; the deltas are by class, then dx, dy, dw, dh.
        """
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x)

    def candidates(self, proposals: Tensor, logits: Tensor, deltas: Tensor, image_size: tuple[int, int]) -> ScoredBoxes:
        """All pairs of a region and a class whose score is above the threshold, region by region.

        Args:
            proposals: ``(n, 4)`` of one image.
            logits: ``(n, classes + 1)``.
            deltas: ``(n, 4 · classes)``.
            image_size: ``(h, w)`` in pixels, without padding.
        """
        scores = logits.float().softmax(dim=1)[:, :-1]
        region, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        chosen = deltas.float().reshape(len(deltas), -1, 4)[region, label]
        boxes = decode(proposals[region], chosen, self.config.stds, image_size)
        return ScoredBoxes(boxes, scores[region, label], label)

    def select(self, candidates: ScoredBoxes) -> Tensor:
        """Indices of the candidates that become detections, best first."""
        kept = suppress(candidates.boxes, candidates.scores, candidates.labels, self.config.nms_iou)
        return kept[: self.config.max_per_image]

    @torch.no_grad()
    def detections(self, proposals: Tensor, logits: Tensor, deltas: Tensor, image_size: tuple[int, int]) -> ScoredBoxes:
        """The best boxes of one image, best first; arguments as of `candidates`."""
        found = self.candidates(proposals, logits, deltas, image_size)
        kept = self.select(found)
        return ScoredBoxes(found.boxes[kept], found.scores[kept], found.labels[kept])
