"""Images as the official detectors take them: resized to fit, normalised, padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import InputError

#: The longest and the shortest edge that images are resized to fit.
FIT = (1333, 800)

#: Sides of the network's input are a multiple of this.
DIVISOR = 32

#: Of red, green and blue, on 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

#: The resize computes with weights of so many bits after the point, as OpenCV does on bytes.
_BITS = 11


@dataclass(frozen=True)
class ImageBatch:
    """Images of several sizes, as one input of the network.

    Attributes:
        pixels: ``(b, 3, H, W)``, float32, normalised, 0 to the right of and below each image.
        sizes: ``(h, w)`` of each image within, without padding.
        original_sizes: ``(h, w)`` of each image before it was resized.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """The same on another device."""
        return ImageBatch(self.pixels.to(device, non_blocking=non_blocking), self.sizes, self.original_sizes)

    def __len__(self) -> int:
        """How many images."""
        return len(self.sizes)


def fitted_size(size: tuple[int, int], fit: tuple[int, int] = FIT) -> tuple[int, int]:
    """``(h, w)`` of an image of ``size (h, w)`` after the resize that keeps its ratio and fits the edges ``fit``.

    ``fit`` is the longest and the shortest edge allowed, in either order.
    """
    factor = min(max(fit) / max(size), min(fit) / min(size))
    h, w = (max(int(edge * factor + 0.5), 1) for edge in size)
    return h, w


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, without smoothing, with OpenCV's arithmetic on bytes.

    Args:
        image: ``(c, h, w)``, uint8.
        size: ``(h, w)`` to be.

    Returns:
        ``(c, h', w')``, uint8.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    top, bottom, down_weight = _taps(image.shape[-2], size[0])
    left, right, right_weight = _taps(image.shape[-1], size[1])
    # Columns beyond the border have no weight; rows beyond it are the border's, which truncates twice.
    right_weight = torch.where(left < 0, 0, right_weight)
    left, right = left.clamp(min=0), right.clamp(max=image.shape[-1] - 1)
    wide = image[:, :, left].int() * (2**_BITS - right_weight) + image[:, :, right].int() * right_weight
    wide >>= 4
    upper, lower = (wide[:, rows.clamp(0, image.shape[-2] - 1)] for rows in (top, bottom))
    weight = down_weight[:, None]
    mixed = ((upper * (2**_BITS - weight)) >> 16) + ((lower * weight) >> 16)
    resized: Tensor = ((mixed + 2) >> 2).clamp(0, 255).to(torch.uint8)
    return resized


def _taps(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each new place its two neighbours, perhaps beyond the border, and the second's weight, in ``2**-_BITS``."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    first = place.floor()
    return first.long(), first.long() + 1, ((place - first) * 2**_BITS).round().int()


def normalise(image: Tensor) -> Tensor:
    """``(3, h, w)``, uint8, red, green, blue, to float32 with the mean and the deviation of the official models."""
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, STD))
    return (image.float() - mean) / std


def pad(images: Sequence[Tensor]) -> Tensor:
    """Images ``(3, h_i, w_i)`` as one ``(b, 3, H, W)``: zeros right and below, to the largest and a multiple of 32."""
    h, w = (max(padded_size((image.shape[-2], image.shape[-1]))[axis] for image in images) for axis in (0, 1))
    batch = images[0].new_zeros(len(images), images[0].shape[0], h, w)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return batch


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """``(h, w)`` rounded up to multiples of 32."""
    h, w = (-(-edge // DIVISOR) * DIVISOR for edge in size)
    return h, w


def prepare(images: Sequence[Any], fit: tuple[int, int] = FIT) -> ImageBatch:
    """A batch out of images.

    Args:
        images: each a uint8 tensor ``(3, h, w)``, a uint8 array ``(h, w, 3)`` or a PIL image; red, green, blue.
        fit: the longest and the shortest edge that they are resized to fit.

    Raises:
        InputError: something else, or nothing.
    """
    if len(images) == 0:
        raise InputError("there is no image to prepare; give one at least")
    pixels = [as_pixels(image) for image in images]
    originals = tuple((image.shape[-2], image.shape[-1]) for image in pixels)
    sizes = tuple(fitted_size(size, fit) for size in originals)
    ready = [normalise(resize(image, size)) for image, size in zip(pixels, sizes, strict=True)]
    return ImageBatch(pad(ready), sizes, originals)


def as_pixels(image: Any) -> Tensor:
    """``(3, h, w)``, uint8, of what `prepare` takes.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(image, Tensor):
        import numpy as np

        if hasattr(image, "convert"):  # PIL's
            image = image.convert("RGB")
        array = np.array(image)
        image = torch.from_numpy(array).permute(2, 0, 1) if array.ndim == 3 and array.dtype == np.uint8 else array
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        given = f"{image.dtype} of shape {tuple(image.shape)}"
        raise InputError(f"an image must be uint8, (3, h, w) as a tensor or (h, w, 3) as an array, not {given}")
    if 0 in image.shape:
        raise InputError(f"an image of shape {tuple(image.shape)} has no pixels")
    return image
