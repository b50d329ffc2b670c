"""Mask R-CNN on a VMamba backbone, compatible with the official checkpoints (He et al., "Mask R-CNN")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.architecture.detectors import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig
from vmamba.errors import InputError
from vmamba.heads.mask_rcnn.box_head import BoxHead
from vmamba.heads.mask_rcnn.fpn import FPN
from vmamba.heads.mask_rcnn.losses import Regions, Truth, box_losses, mask_loss, rpn_losses, sample_regions
from vmamba.heads.mask_rcnn.mask_head import MaskHead, of_labels
from vmamba.heads.mask_rcnn.pasting import paste_masks
from vmamba.heads.mask_rcnn.preparation import FIT, ImageBatch, padded_size, prepare
from vmamba.heads.mask_rcnn.regions import pool_regions
from vmamba.heads.mask_rcnn.rpn import RPNHead
from vmamba.models.backbone import Backbone_VSSM


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: ``(n, 4)``, float32: x1, y1, x2, y2 in pixels of the image.
        scores: ``(n,)``, float32, in 0..1.
        labels: ``(n,)``, int64, from 0.
        masks: ``(n, h, w)``, bool.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        """How many objects."""
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Detections:
        """The same on another device."""
        return Detections(*(x.to(device) for x in (self.boxes, self.scores, self.labels, self.masks)))

    def above(self, score: float) -> Detections:
        """Those with a score of at least ``score``."""
        chosen = self.scores >= score
        return Detections(*(x[chosen] for x in (self.boxes, self.scores, self.labels, self.masks)))


class RoIHead(nn.Module):
    """What is computed for each region: a container for the two heads, as the official checkpoints name them."""

    def __init__(self, box_head: BoxHeadConfig, mask_head: MaskHeadConfig) -> None:
        super().__init__()
        self.bbox_head = BoxHead(box_head)
        self.mask_head = MaskHead(mask_head)


class MaskRCNN(nn.Module):
    """Boxes, classes and masks of the objects in images.

    Args:
        backbone: fields of `VSSMConfig`; ``pretrained`` is a classifier's weight file to start from.
        neck: fields of `NeckConfig`.
        rpn: fields of `RPNConfig`.
        box_head: fields of `BoxHeadConfig`.
        mask_head: fields of `MaskHeadConfig`.
        config: all of these; options given beside it take the place of its own.

    Raises:
        ConfigError, BackendError: an illegal option, or parts that do not fit together.
        CheckpointError: ``pretrained`` does not fit.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        neck: Mapping[str, Any] | None = None,
        rpn: Mapping[str, Any] | None = None,
        box_head: Mapping[str, Any] | None = None,
        mask_head: Mapping[str, Any] | None = None,
        *,
        config: MaskRCNNConfig | None = None,
    ) -> None:
        super().__init__()
        pretrained = None
        if backbone is not None and "pretrained" in backbone:
            pretrained = backbone["pretrained"]
            backbone = {name: value for name, value in backbone.items() if name != "pretrained"}
        parts = {"backbone": backbone, "neck": neck, "rpn": rpn, "box_head": box_head, "mask_head": mask_head}
        given = {name: part for name, part in parts.items() if part is not None}
        self.config = config = MaskRCNNConfig.from_dict(given) if config is None else config.replace(**given)
        self.backbone = Backbone_VSSM(
            tuple(range(len(config.backbone.depths))), pretrained=pretrained, config=config.backbone
        )
        self.neck = FPN(config.neck)
        self.rpn_head = RPNHead(config.rpn)
        self.roi_head = RoIHead(config.box_head, config.mask_head)

    @property
    def num_classes(self) -> int:
        """Kinds of objects, without the background."""
        return self.config.num_classes

    def forward(
        self,
        x: Tensor | ImageBatch,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        original_sizes: Sequence[tuple[int, int]] | None = None,
        targets: Sequence[Truth] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Detections] | dict[str, Tensor]:
        """Detect, or with ``targets`` measure the losses.

        Args:
            x: images ``(b, c, H, W)``, normalised and padded, or a batch that says its sizes itself.
            image_sizes: ``(h, w)`` of each image without padding; None: as large as ``x``.
            original_sizes: ``(h, w)`` of each image before it was resized, which results are given for; None: results
                are in pixels of the network's input.
            targets: of each image, in pixels of the network's input.
            generator: of the random numbers that anchors and regions are drawn with, on the CPU; None: torch's own.

        Returns:
            `Detections` of each image, or the losses: ``loss_rpn_cls``, ``loss_rpn_bbox``, ``loss_cls``, ``loss_bbox``,
            ``loss_mask``, scalars whose sum is to be minimised.

        Raises:
            InputError: sizes or targets that do not fit ``x``, or none in training mode.
        """
        if isinstance(x, ImageBatch):
            image_sizes, original_sizes, x = x.sizes, x.original_sizes, x.pixels
        sizes = self._sizes(x, image_sizes)
        if targets is None and self.training:
            raise InputError("in training mode a Mask R-CNN needs targets; model.eval() makes it detect")
        if targets is not None and len(targets) != len(x):
            raise InputError(f"{len(targets)} targets were given for {len(x)} images")
        if original_sizes is not None and len(original_sizes) != len(x):
            raise InputError(f"{len(original_sizes)} original sizes were given for {len(x)} images")
        maps = self.neck(self.backbone(x))
        scores, deltas = self.rpn_head(maps)
        anchors = self.rpn_head.anchors(maps)
        proposals = self.rpn_head.proposals(scores, deltas, anchors, sizes)
        if targets is None:
            return self._detect(maps, proposals, sizes, original_sizes)
        padded = [padded_size(size) for size in sizes]
        rpn = rpn_losses(self.rpn_head, scores, deltas, anchors, targets, padded, generator)
        regions = [
            sample_regions(own, truth, self.config.box_head, generator)
            for own, truth in zip(proposals, targets, strict=True)
        ]
        return {"loss_rpn_cls": rpn[0], "loss_rpn_bbox": rpn[1], **self._region_losses(maps, regions, targets)}

    def region_features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
        """Features ``(n, c, size, size)`` of the boxes ``(n_j, 4)`` of each image, out of the pyramid's ``maps``.

        The levels that were only subsampled from others are not used.
        """
        count = len(self.config.neck.in_channels)
        return pool_regions(maps[:count], self.config.rpn.strides[:count], boxes, size)

    def _sizes(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
        if x.dim() != 4 or len(x) == 0:
            raise InputError(f"images must be (b, c, H, W) with one image at least, not {tuple(x.shape)}")
        h, w = x.shape[-2:]
        if sizes is None:
            return [(h, w)] * len(x)
        if len(sizes) != len(x) or any(not (0 < own[0] <= h and 0 < own[1] <= w) for own in sizes):
            raise InputError(f"image_sizes {list(sizes)} do not fit the images' shape {tuple(x.shape)}")
        return [(int(own[0]), int(own[1])) for own in sizes]

    def _detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Detections]:
        box_head, mask_head = self.roi_head.bbox_head, self.roi_head.mask_head
        counts = [len(own) for own in proposals]
        logits, deltas = box_head(self.region_features(maps, proposals, box_head.config.roi_size))
        parts = zip(proposals, logits.split(counts), deltas.split(counts), sizes, strict=True)
        found = [box_head.detections(*part) for part in parts]
        # Masks are predicted for the boxes of the network's input, before they are scaled back.
        features = self.region_features(maps, [own.boxes for own in found], mask_head.config.roi_size)
        masks = of_labels(mask_head(features), torch.cat([own.labels for own in found])).float().sigmoid()
        results = []
        for own, maps_of_image, size, original in zip(
            found, masks.split([len(own.boxes) for own in found]), sizes, original_sizes or sizes, strict=True
        ):
            factor = own.boxes.new_tensor([size[1] / original[1], size[0] / original[0]] * 2)
            boxes = own.boxes / factor
            pasted = paste_masks(maps_of_image, boxes, original, mask_head.config.threshold)
            results.append(Detections(boxes, own.scores, own.labels, pasted))
        return results

    def _region_losses(
        self, maps: Sequence[Tensor], regions: Sequence[Regions], truths: Sequence[Truth]
    ) -> dict[str, Tensor]:
        box_head, mask_head = self.roi_head.bbox_head, self.roi_head.mask_head
        logits, deltas = box_head(self.region_features(maps, [own.boxes for own in regions], box_head.config.roi_size))
        classes, boxes = box_losses(logits, deltas, regions, truths, box_head.config)
        masks = mask_head(self.region_features(maps, [own.positive for own in regions], mask_head.config.roi_size))
        return {"loss_cls": classes, "loss_bbox": boxes, "loss_mask": mask_loss(masks, regions, truths)}

    @torch.inference_mode()
    def predict(self, images: Sequence[Any], fit: tuple[int, int] = FIT) -> list[Detections]:
        """Detect in images of any sizes, in evaluation mode, prepared as the official models were trained.

        Args:
            images: each a uint8 tensor ``(3, h, w)``, a uint8 array ``(h, w, 3)`` or a PIL image; red, green, blue.
            fit: the longest and the shortest edge that they are resized to fit.

        Returns:
            `Detections` of each image, in its own pixels.

        Raises:
            InputError: something that is no image.
        """
        batch = prepare(images, fit).to(next(self.parameters()).device)
        was_training = self.training
        self.eval()
        try:
            found = self(batch)
        finally:
            self.train(was_training)
        return list(found)
