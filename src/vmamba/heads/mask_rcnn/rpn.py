"""The region proposal network (Faster R-CNN, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.architecture.detectors import RPNConfig
from vmamba.heads.mask_rcnn.anchors import base_anchors, level_anchors
from vmamba.heads.mask_rcnn.boxes import decode, not_empty, suppress


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image that may become proposals.

    Attributes:
        boxes: ``(n, 4)`` in pixels of the network's input, clipped to the image.
        scores: ``(n,)``, in 0..1.
        levels: ``(n,)``, int64, of the pyramid.
    """

    boxes: Tensor
    scores: Tensor
    levels: Tensor


class RPNHead(nn.Module):
    """Scores and deltas of every anchor, and the best boxes made of them."""

    def __init__(self, config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        self.count = len(config.scales) * len(config.ratios)
        self.rpn_conv = nn.Conv2d(config.in_channels, config.feat_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(config.feat_channels, self.count, 1)
        self.rpn_reg = nn.Conv2d(config.feat_channels, 4 * self.count, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels ``(b, c, h_i, w_i)`` to scores ``(b, a, h_i, w_i)`` and deltas ``(b, 4a, h_i, w_i)``.

        ``a`` anchors a place; scores are before the sigmoid; deltas are dx, dy, dw, dh of one anchor, then the next.
        """
        hidden = [F.relu(self.rpn_conv(x)) for x in maps]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors ``(h_i · w_i · a, 4)`` of each level, in pixels, float32."""
        config = self.config
        return [
            level_anchors(base_anchors(stride, config.scales, config.ratios).to(x.device), _size(x), stride)
            for stride, x in zip(config.strides, maps, strict=True)
        ]

    def candidates(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], image_size: tuple[int, int]
    ) -> Candidates:
        """The best boxes of each level of one image, before suppression.

        Args:
            scores: `flatten` of what `forward` gave: ``(n_i,)`` a level.
            deltas: likewise, ``(n_i, 4)``.
            anchors: of each level, ``(n_i, 4)``.
            image_size: ``(h, w)`` in pixels, without padding.
        """
        most = self.config.nms_pre_train if self.training else self.config.nms_pre
        found: list[list[Tensor]] = [[], [], []]
        for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
            score = score.float().sigmoid()
            delta = delta.float()
            if len(score) > most:
                score, order = score.sort(descending=True, stable=True)
                score, order = score[:most], order[:most]
                delta, anchor = delta[order], anchor[order]
            boxes = decode(anchor, delta, image_size=image_size)
            for part, values in zip(
                found, (boxes, score, torch.full_like(score, level, dtype=torch.int64)), strict=True
            ):
                part.append(values)
        boxes, score, levels = (torch.cat(part) for part in found)
        valid = not_empty(boxes)
        return Candidates(boxes[valid], score[valid], levels[valid])

    def select(self, candidates: Candidates) -> Tensor:
        """Indices of the candidates that become proposals, best first."""
        kept = suppress(candidates.boxes, candidates.scores, candidates.levels, self.config.nms_iou)
        return kept[: self.config.max_per_image]

    @torch.no_grad()
    def proposals(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Proposals ``(n_j, 4)`` of each image of a batch, best first, without gradient.

        Args:
            scores: what `forward` gave, ``(b, a, h_i, w_i)`` a level.
            deltas: likewise.
            anchors: of each level.
            image_sizes: ``(h, w)`` of each image in pixels, without padding.
        """
        flat_scores, flat_deltas = flatten(scores, 1), flatten(deltas, 4)
        found = []
        for i, size in enumerate(image_sizes):
            own = self.candidates(
                [level[i, :, 0] for level in flat_scores], [level[i] for level in flat_deltas], anchors, size
            )
            found.append(own.boxes[self.select(own)])
        return found


def flatten(maps: Sequence[Tensor], width: int) -> list[Tensor]:
    """Levels ``(b, a · width, h, w)`` as ``(b, h · w · a, width)``, in the anchors' order."""
    return [x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
