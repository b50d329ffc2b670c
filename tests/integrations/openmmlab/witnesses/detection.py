"""mmdetection's MaskRCNN on our backbone: keys, stored outputs, one step of training."""

from __future__ import annotations

from typing import Any

import mmcv_ops  # noqa: F401 — before mmdet
import numpy as np
import torch
from common import apart, cases, configuration, digest, fill_weights, under, without_gradient
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from parity_fill import fill


def small(case: dict[str, Any]) -> dict[str, Any]:
    box, mask = dict(case["box_head"]), dict(case["mask_head"])
    box["roi_feat_size"] = box.pop("roi_size")
    mask.pop("roi_size")
    channels = case["neck"]["out_channels"]
    return {
        **under("model.backbone", case["backbone"]),
        **under("model.neck", case["neck"]),
        **under("model.rpn_head", case["rpn"]),
        **under("model.roi_head.bbox_head", box),
        **under("model.roi_head.mask_head", mask),
        "model.roi_head.bbox_roi_extractor.out_channels": channels,
        "model.roi_head.mask_roi_extractor.out_channels": channels,
    }


def stored(case: dict[str, Any], want: dict[str, torch.Tensor]) -> dict[str, Any]:
    model = MODELS.build(configuration("mask_rcnn", small(case)).model).eval()
    keys = fill_weights(model, case["seed"])
    image = torch.from_numpy(fill("input", case["input_shape"], case["seed"]))
    h, w = case["image_shape"]
    image[..., h:, :] = 0
    image[..., w:] = 0
    meta = {
        "img_shape": (h, w), "ori_shape": tuple(case["original_shape"]), "pad_shape": tuple(image.shape[2:]),
        "batch_input_shape": tuple(image.shape[2:]), "scale_factor": tuple(case["scale_factor_w_h"]),
    }  # fmt: skip
    with torch.no_grad():
        maps = model.backbone(image)
        pyramid = model.neck(maps)
        scores, deltas = model.rpn_head(pyramid)
        got = {
            f"{name}.{i}": one
            for name, ones in (("fpn", pyramid), ("rpn.cls", scores), ("rpn.bbox", deltas))
            for i, one in enumerate(ones)
        }
        boxes = torch.cat([torch.zeros(len(want["proposals.boxes"]), 1), want["proposals.boxes"]], 1)
        head = model.roi_head._bbox_forward(pyramid, boxes)
        got |= {"box.cls": head["cls_score"], "box.bbox": head["bbox_pred"]}
        detected = torch.cat([torch.zeros(len(want["det.boxes"]), 1), want["det.boxes"]], 1)
        masks = model.roi_head._mask_forward(pyramid, detected)["mask_preds"]
        got["mask.logits_of_label"] = masks[torch.arange(len(masks)), want["det.labels"].long()]
        found = model.predict(image, [DetDataSample(metainfo=meta)], rescale=case["rescale"])[0].pred_instances
    # Both sorted: neighbours' scores may be nearer than rounding.
    order, other = (torch.argsort(boxes[:, 0] * 1e3 + boxes[:, 1]) for boxes in (found.bboxes, want["final.boxes"]))
    masks = np.unpackbits(want["final.masks_packed"].numpy(), axis=1)[:, : found.masks[0].numel()]
    return {
        "keys": keys == [list(key) for key in case["keys"]],
        "tensors": {name: apart(tensor, want[name]) for name, tensor in got.items()},
        "boxes": apart(found.bboxes[order], want["final.boxes"][other]),
        "scores": apart(found.scores[order], want["final.scores"][other]),
        "labels": bool((found.labels[order] == want["final.labels"][other]).all()),
        "mask pixels": int((found.masks[order].flatten(1).numpy() != masks[other]).sum()),
    }


def trained(case: dict[str, Any]) -> dict[str, Any]:
    """Losses, and the parameters that they do not reach."""
    torch.manual_seed(0)
    model = MODELS.build(configuration("mask_rcnn", small(case)).model).train()
    sample = DetDataSample(metainfo={"img_shape": (128, 96), "pad_shape": (128, 96), "batch_input_shape": (128, 96)})
    mask = np.zeros((1, 128, 96), np.uint8)
    mask[:, 20:90, 10:70] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 20, 70, 90]]), labels=torch.tensor([1]), masks=BitmapMasks(mask, 128, 96)
    )
    total, losses = model.parse_losses(model.loss(torch.rand(1, 3, 128, 96), [sample]))
    total.backward()
    return {
        "losses": {name: float(value) for name, value in losses.items()},
        "without gradient": without_gradient(model),
    }


def report(configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Digests of the whole configurations' keys, differences of the stored cases, and a step of training."""
    with torch.device("meta"):
        full = {
            name: digest(MODELS.build(configuration("mask_rcnn", changes).model))
            for name, changes in configurations.items()
        }
    here = cases("detection")
    return {
        "full": full,
        "cases": {name: stored(*case) for name, case in here.items()},
        "trained": trained(next(iter(here.values()))[0]),
    }
