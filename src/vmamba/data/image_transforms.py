"""timm's transforms of an 8-bit image, the same values in a third of the time for the small ones.

On a 28×28 image nine tenths of a transform's time are the calls around the arithmetic. So the dearest links of
timm's chain are done by Pillow and NumPy directly. The rest stays timm's, and so do the random numbers, but that none
are drawn for a crop which can only be the whole image.

Beside them what timm does not have: shifts, and flips in turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip
from torchvision.transforms.functional import InterpolationMode

from vmamba.data.mirroring import ALTERNATE, Hflip, flipped

_RESAMPLING = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
}


class Shift:
    """Moves a Pillow image by up to so many pixels, at random; what comes in is black."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, image: Image.Image) -> Image.Image:
        """Move it down or up, and right or left."""
        left, top = round(random.uniform(-self.most, self.most)), round(random.uniform(-self.most, self.most))
        return image.crop((left, top, left + image.width, top + image.height)) if top or left else image

    def __repr__(self) -> str:
        return f"Shift({self.most})"


class CropAndResize:
    """timm's `RandomResizedCropAndInterpolation` of a Pillow image."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.crop = crop
        self.size = (crop.size[1], crop.size[0])
        self.resampling = _RESAMPLING[crop.interpolation]
        self.whole = tuple(crop.scale) == tuple(crop.ratio) == (1.0, 1.0)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Draw a crop, cut it out and resize it."""
        if not (self.whole and image.width == image.height):
            draw: Any = self.crop.get_params
            top, left, height, width = draw(image, self.crop.scale, self.crop.ratio)
            image = image.crop((left, top, left + width, top + height))
        return image.resize(self.size, self.resampling)

    def __repr__(self) -> str:
        return repr(self.crop)


class Flip:
    """torchvision's `RandomHorizontalFlip` of a Pillow image, without the ways of a module; or one that takes turns."""

    def __init__(self, hflip: Hflip) -> None:
        self.hflip: Hflip = ALTERNATE if hflip == ALTERNATE else float(np.float32(hflip))  # torch compares in float32

    def __call__(self, image: Image.Image) -> Image.Image:
        """Flip left and right, or not."""
        turned = flipped(self.hflip, lambda: float(torch.rand(1)))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turned else image

    def __repr__(self) -> str:
        return f"Flip({self.hflip})"


class ToNormalizedTensor:
    """A Pillow image, 8-bit grey or RGB, as ``(x / 255 - mean) / std`` in float32, ``(c, h, w)``."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = np.asarray(mean, np.float32)[:, None, None]
        self.std = np.asarray(std, np.float32)[:, None, None]

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert."""
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        values = np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
        values -= self.mean
        values /= self.std
        return torch.from_numpy(values)

    def __repr__(self) -> str:
        return f"ToNormalizedTensor(mean={self.mean.ravel().tolist()}, std={self.std.ravel().tolist()})"


def quickened(transform: Compose, hflip: Hflip = 0.0) -> Compose:
    """``transform``, of timm's factory, with its dear links replaced by equal ones; another chain as it is.

    With ``hflip="alternate"``, which timm does not have, its flip takes turns.
    """
    links: list[Callable[[Any], Any]] = []
    for link in transform.transforms:
        if isinstance(link, RandomResizedCropAndInterpolation) and link.interpolation in _RESAMPLING:
            links.append(CropAndResize(link))
        elif isinstance(link, RandomHorizontalFlip):
            links.append(Flip(ALTERNATE if hflip == ALTERNATE else link.p))
        elif isinstance(link, Normalize) and links and isinstance(links[-1], MaybeToTensor):
            links[-1] = ToNormalizedTensor(torch.as_tensor(link.mean).tolist(), torch.as_tensor(link.std).tolist())
        else:
            links.append(link)
    assert hflip != ALTERNATE or any(isinstance(link, Flip) for link in links), "timm's flip is not torchvision's"
    return Compose(links)
