"""From an array of any number of channels to the model's input: what makes sense without knowing what they mean."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vmamba.data.mirroring import flipped

if TYPE_CHECKING:
    from vmamba.data.preprocessing import Augmentation, Preprocessing
    from vmamba.data.reading.arrays import Pixels


class ArrayTransform:
    """``(in_chans, H, W)`` float32 → the same of the model's size, normalised.

    With ``augmentation``: a random crop, a left-right flip, and a random rectangle replaced by noise, as timm's
    transforms do to images. Else the shorter side is resized and the centre cropped.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: Augmentation | None = None) -> None:
        self.p = preprocessing
        self.augmentation = augmentation
        self._mean = torch.tensor(preprocessing.mean)[:, None, None]
        self._std = torch.tensor(preprocessing.std)[:, None, None]

    def __call__(self, pixels: Pixels) -> Tensor:
        """The model's input ``(in_chans, height, width)``."""
        from timm.data.random_erasing import RandomErasing

        image = torch.from_numpy(pixels)
        a = self.augmentation
        if a is None:
            return self._normalised(self._centre(image))
        image = self._normalised(self._random_crop(self._shifted(image, a.shift or 0.0), a))
        if a.hflip and flipped(a.hflip, random.random):
            image = image.flip(-1)
        if a.random_erasing:
            image = RandomErasing(a.random_erasing, mode="pixel", device="cpu")(image)  # type: ignore[no-untyped-call]
        return image

    def _shifted(self, image: Tensor, most: float) -> Tensor:
        if not most:
            return image
        height, width = image.shape[-2:]
        left, top = (round(random.uniform(-most, most)) for _ in range(2))
        left, top = max(-width, min(left, width)), max(-height, min(top, height))
        # Cut off on one side, and padded on the other.
        return torch.nn.functional.pad(image, (-left, left, -top, top))

    def _normalised(self, image: Tensor) -> Tensor:
        return (image - self._mean) / self._std

    def _resized(self, image: Tensor, height: int, width: int) -> Tensor:
        if image.shape[-2:] == (height, width):
            return image
        smooth = self.p.interpolation != "nearest"
        return torch.nn.functional.interpolate(
            image[None],
            (height, width),
            mode=self.p.interpolation if smooth else "nearest-exact",
            antialias=smooth,
        )[0]

    def _centre(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # The smallest size of the same shape that holds the crop's frame.
        scale = max(self.p.height / height, self.p.width / width) / self.p.crop_pct
        image = self._resized(image, max(self.p.height, round(height * scale)), max(self.p.width, round(width * scale)))
        top, left = (image.shape[-2] - self.p.height) // 2, (image.shape[-1] - self.p.width) // 2
        return image[:, top : top + self.p.height, left : left + self.p.width]

    def _random_crop(self, image: Tensor, a: Augmentation) -> Tensor:
        height, width = image.shape[-2:]
        low, high = a.crop_scale or (1.0, 1.0)
        if (low, high) == (1.0, 1.0):
            return self._centre(image)
        ratios = np.log(a.crop_ratio or (1.0, 1.0))
        for _ in range(10):
            area, ratio = height * width * random.uniform(low, high), float(np.exp(random.uniform(*ratios)))
            h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                return self._resized(image[:, top : top + h, left : left + w], self.p.height, self.p.width)
        return self._centre(image)
