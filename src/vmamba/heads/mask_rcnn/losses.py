"""What training a Mask R-CNN minimises (Faster R-CNN, equation 1; Mask R-CNN, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.architecture.detectors import BoxHeadConfig
from vmamba.heads.mask_rcnn.anchors import inside
from vmamba.heads.mask_rcnn.boxes import clip, encode
from vmamba.heads.mask_rcnn.mask_head import of_labels
from vmamba.heads.mask_rcnn.matching import assign, sample
from vmamba.heads.mask_rcnn.rpn import RPNHead, flatten


@dataclass(frozen=True)
class Truth:
    """The objects of one image, in pixels of the network's input.

    Attributes:
        boxes: ``(g, 4)``, float32, of positive width and height.
        labels: ``(g,)``, int64, from 0.
        masks: ``(g, h, w)``, bool or uint8, of the image without padding.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Truth:
        """The same on another device."""
        moved = (x.to(device, non_blocking=non_blocking) for x in (self.boxes, self.labels, self.masks))
        return Truth(*moved)


@dataclass(frozen=True)
class Regions:
    """The regions of one image that the heads learn from.

    Attributes:
        boxes: ``(n, 4)``, the positive ones first.
        labels: ``(n,)``, int64; the number of classes stands for background.
        truth: ``(p,)``, int64, which true box each of the ``p`` positive ones belongs to.
    """

    boxes: Tensor
    labels: Tensor
    truth: Tensor

    @property
    def positive(self) -> Tensor:
        """Boxes of the positive regions, ``(p, 4)``."""
        return self.boxes[: len(self.truth)]


def rpn_losses(
    head: RPNHead,
    scores: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    truths: Sequence[Truth],
    padded: Sequence[tuple[int, int]],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of the anchors drawn, and L1 of the positive ones' deltas, both over all anchors drawn.

    Args:
        head: whose settings decide.
        scores: what it gave, ``(b, a, h_i, w_i)`` a level.
        deltas: likewise, ``(b, 4a, h_i, w_i)``.
        anchors: of each level.
        truths: of each image.
        padded: each image's own padded ``(h, w)`` in pixels; anchors at places beyond are not drawn.
        generator: of random numbers.
    """
    config = head.config
    score, delta = torch.cat(flatten(scores, 1), dim=1)[:, :, 0].float(), torch.cat(flatten(deltas, 4), dim=1).float()
    everywhere = torch.cat(list(anchors))
    sizes = [(x.shape[-2], x.shape[-1]) for x in scores]
    cross_entropy, l1, count = score.sum() * 0.0, delta.sum() * 0.0, 0
    for i, (truth, own) in enumerate(zip(truths, padded, strict=True)):
        within = [
            inside(size, own, stride, head.count, score.device)
            for size, stride in zip(sizes, config.strides, strict=True)
        ]
        places = torch.cat(within).nonzero()[:, 0]
        assigned = assign(
            everywhere[places], truth.boxes, config.positive_iou, config.negative_iou, config.min_positive_iou
        )
        positive, negative = sample(assigned, config.samples, config.positive_fraction, generator)
        drawn = places[torch.cat([positive, negative])]
        target = torch.zeros_like(drawn, dtype=torch.float32)
        target[: len(positive)] = 1
        cross_entropy = cross_entropy + F.binary_cross_entropy_with_logits(score[i, drawn], target, reduction="sum")
        chosen = places[positive]
        wanted = encode(everywhere[chosen], truth.boxes[assigned[positive] - 1])
        l1 = l1 + F.l1_loss(delta[i, chosen], wanted, reduction="sum")
        count += len(drawn)
    return cross_entropy / max(count, 1), l1 / max(count, 1)


def sample_regions(
    proposals: Tensor, truth: Truth, config: BoxHeadConfig, generator: torch.Generator | None = None
) -> Regions:
    """Draw the regions of one image that the heads learn from; the true boxes are among those to draw from.

    Args:
        proposals: ``(n, 4)``.
        truth: the image's objects.
        config: thresholds and numbers.
        generator: of random numbers.
    """
    assigned = assign(proposals, truth.boxes, config.positive_iou, config.positive_iou, config.positive_iou)
    own = torch.arange(1, len(truth.boxes) + 1, device=assigned.device)
    assigned, boxes = torch.cat([own, assigned]), torch.cat([truth.boxes, proposals])
    positive, negative = sample(assigned, config.samples, config.positive_fraction, generator)
    index = assigned[positive] - 1
    background = torch.full_like(negative, config.num_classes)
    return Regions(boxes[torch.cat([positive, negative])], torch.cat([truth.labels[index], background]), index)


def box_losses(
    logits: Tensor, deltas: Tensor, regions: Sequence[Regions], truths: Sequence[Truth], config: BoxHeadConfig
) -> tuple[Tensor, Tensor]:
    """Cross entropy over classes, and L1 of the positive regions' deltas for their class; both over all regions.

    Args:
        logits: ``(n, classes + 1)`` of all images' regions.
        deltas: ``(n, 4 · classes)``.
        regions: of each image.
        truths: of each image.
        config: whose ``stds`` deltas are divided by.
    """
    labels = torch.cat([own.labels for own in regions])
    cross_entropy = F.cross_entropy(logits.float(), labels, reduction="sum")
    wanted = torch.cat(
        [encode(own.positive, truth.boxes[own.truth], config.stds) for own, truth in zip(regions, truths, strict=True)]
    )
    positive = (labels < config.num_classes).nonzero()[:, 0]
    own_deltas = deltas.float().reshape(len(deltas), -1, 4)[positive, labels[positive]]
    l1 = F.l1_loss(own_deltas, wanted, reduction="sum")
    return cross_entropy / max(len(labels), 1), l1 / max(len(labels), 1)


def mask_targets(masks: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """The part of a true mask in each box, as a map of 0 and 1.

    Args:
        masks: ``(g, h, w)`` of one image.
        boxes: ``(n, 4)``; cut at the image's border.
        index: ``(n,)``, int64, which mask each box is for.
        size: side of the maps.

    Returns:
        ``(n, size, size)``, float32.
    """
    from torchvision.ops import roi_align

    boxes = clip(boxes, (masks.shape[-2], masks.shape[-1]))
    rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    cut = roi_align(masks[:, None].float(), rois, size, 1.0, sampling_ratio=0, aligned=True)
    targets: Tensor = (cut[:, 0] >= 0.5).float()
    return targets


def mask_loss(logits: Tensor, regions: Sequence[Regions], truths: Sequence[Truth]) -> Tensor:
    """Binary cross entropy of the map of each positive region's class, the mean over regions and pixels.

    Args:
        logits: ``(p, classes, s, s)`` of all images' positive regions.
        regions: of each image.
        truths: of each image.
    """
    if len(logits) == 0:
        return logits.sum()  # 0, with the parameters in its graph
    size = logits.shape[-1]
    labels = torch.cat([own.labels[: len(own.truth)] for own in regions])
    targets = torch.cat(
        [mask_targets(truth.masks, own.positive, own.truth, size) for own, truth in zip(regions, truths, strict=True)]
    )
    return F.binary_cross_entropy_with_logits(of_labels(logits, labels).float(), targets)
