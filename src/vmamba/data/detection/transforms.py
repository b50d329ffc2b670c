"""From an image and its objects to what a detector takes: paired random changes to learn from, none to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmamba.data.detection.sets import Objects
from vmamba.data.mirroring import Hflip, flipped
from vmamba.data.preprocessing import Augmentation, Preprocessing
from vmamba.data.segmentation.transforms import normalised, to_tensor
from vmamba.errors import ConfigError
from vmamba.heads.mask_rcnn.preparation import fitted_size, resize

#: Shortest edges that an image is resized to before a random crop, and the smallest and largest side of that crop.
_BEFORE_CROP, _CROP = (400, 500, 600), (384, 600)
#: The longest edge before the crop: it limits nothing in practice.
_NO_LIMIT = 4200


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes to an image and its objects.

    Attributes:
        fit: longest and shortest edge that images are resized to fit, keeping their shape; None leaves them.
        scales: shortest edges, one of which takes the place of the one in ``fit``; empty: none does.
        crop: with probability one half, cut a random part of the image out first.
        hflip: probability of a left-right flip, or alternate.
        colour: strength of changes of brightness, contrast and saturation.
    """

    fit: tuple[int, int] | None
    scales: tuple[int, ...] = ()
    crop: bool = False
    hflip: Hflip = 0.5
    colour: float = 0.0

    @classmethod
    def of(
        cls, augmentation: Augmentation, fit: tuple[int, int] | None, scales: tuple[int, ...], crop: bool
    ) -> DetectionAugmentation:
        """What a training configuration asks for.

        Raises:
            ConfigError: a change that would not be made to boxes and masks alike.
        """
        a = augmentation
        for name, value, neutral in (
            ("crop_scale", a.crop_scale, (1.0, 1.0)),
            ("crop_ratio", a.crop_ratio, (1.0, 1.0)),
            ("auto_augment", a.auto_augment, "none"),
            ("random_erasing", a.random_erasing, 0.0),
            ("shift", a.shift, 0.0),
        ):
            if value is not None and value != neutral:
                raise ConfigError(
                    f"augmentation.{name}={value} is for whole images' classes; detection has hflip and color_jitter, "
                    "and task_options.scales and task_options.crop"
                )
        return cls(fit, scales, crop, 0.5 if a.hflip is None else a.hflip, a.color_jitter or 0.0)


class TrainTransform:
    """An image and its objects, randomly changed: pixels, boxes, labels and masks at the network's size."""

    def __init__(self, preprocessing: Preprocessing, augmentation: DetectionAugmentation) -> None:
        from torchvision.transforms import v2

        self.preprocessing = preprocessing
        self.augmentation = augmentation
        strength = augmentation.colour
        self._jitter = v2.ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, image: Any, objects: Objects) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels ``(3, h, w)`` float32, boxes ``(n, 4)``, labels ``(n,)`` and masks ``(n, h, w)``."""
        a = self.augmentation
        boxes, labels, masks = (torch.from_numpy(x) for x in (objects.boxes, objects.labels, objects.masks))
        state = to_tensor(image), boxes, labels, masks
        if a.crop and torch.rand(()) < 0.5:
            state = _resized(state, fitted_size(_size(state[0]), (_NO_LIMIT, _one_of(_BEFORE_CROP))))
            state = _cropped(*state)
        if a.fit is not None:
            fit = (max(a.fit), _one_of(a.scales)) if a.scales else a.fit
            state = _resized(state, fitted_size(_size(state[0]), fit))
        if flipped(a.hflip, lambda: float(torch.rand(()))):
            state = _mirrored(*state)
        pixels, boxes, labels, masks = state
        if self._jitter is not None:
            pixels = self._jitter(pixels)
        return normalised(pixels, self.preprocessing), boxes, labels, masks


class EvalTransform:
    """An image as it is measured: pixels ``(3, h, w)`` float32, resized to fit."""

    def __init__(self, preprocessing: Preprocessing, fit: tuple[int, int] | None) -> None:
        self.preprocessing = preprocessing
        self.fit = fit

    def __call__(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        """The pixels, and the image's own height and width."""
        pixels = to_tensor(image)
        size = _size(pixels)
        if self.fit is not None:
            pixels = resize(pixels, fitted_size(size, self.fit))
        return normalised(pixels, self.preprocessing), size


_State = tuple[Tensor, Tensor, Tensor, Tensor]


def _resized(state: _State, size: tuple[int, int]) -> _State:
    pixels, boxes, labels, masks = state
    h, w = _size(pixels)
    if (h, w) == size:
        return pixels, boxes, labels, masks
    factor = torch.tensor([size[1] / w, size[0] / h] * 2)
    if len(masks):
        masks = torch.nn.functional.interpolate(masks[None].to(torch.uint8), size, mode="nearest")[0].bool()
    else:
        masks = masks.new_zeros(0, *size)
    return resize(pixels, size), boxes * factor, labels, masks


def _mirrored(pixels: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor) -> _State:
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as v2

    own = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=_size(pixels))
    return v2.horizontal_flip(pixels), torch.as_tensor(v2.horizontal_flip(own)), labels, v2.horizontal_flip(masks)


def _cropped(pixels: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor) -> _State:
    """A random part; objects of which nothing is left in it are left out."""
    h, w = (min(side, int(torch.randint(_CROP[0], _CROP[1] + 1, ()))) for side in _size(pixels))
    top, left = (int(torch.randint(full - part + 1, ())) for full, part in zip(_size(pixels), (h, w), strict=True))
    moved = boxes - torch.tensor([left, top, left, top])
    moved = torch.minimum(moved.clamp(min=0), torch.tensor([w, h, w, h], dtype=moved.dtype))
    kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    masks = masks[kept, top : top + h, left : left + w]
    return pixels[:, top : top + h, left : left + w], moved[kept], labels[kept], masks


def _one_of(values: Sequence[int]) -> int:
    return values[int(torch.randint(len(values), ()))]


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]
