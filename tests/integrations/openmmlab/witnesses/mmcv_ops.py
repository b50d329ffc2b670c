"""The compiled operators of mmcv that these programs need, from torchvision's; to import before mmseg.models.

mmcv-lite comes without any, and mmseg.models and mmdet.models import all of them: the others raise when called.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor


class Operators(ModuleType):
    """`mmcv._ext`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"mmcv's operator {name}")

        return absent

    @staticmethod
    def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(bboxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, *, aligned_height: int,
        aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
    ) -> None:  # fmt: skip
        assert pool_mode == 1  # the average
        size = (aligned_height, aligned_width)
        output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio or -1, aligned))

    @staticmethod
    def roi_align_backward(
        grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, *, aligned_height: int,
        aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
    ) -> None:  # fmt: skip
        size, samples = (aligned_height, aligned_width), sampling_ratio or -1
        backward = torch.ops.torchvision._roi_align_backward
        grad_input.copy_(backward(grad, rois, spatial_scale, *size, *grad_input.shape, samples, aligned))


module = Operators("mmcv._ext")
module.__spec__ = ModuleSpec("mmcv._ext", None)
sys.modules["mmcv._ext"] = module
