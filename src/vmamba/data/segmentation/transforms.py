"""From an image and its labels to what a network takes: paired random changes to learn from, none to measure.

Sizes follow upstream's settings: bilinear without antialiasing, and sizes rounded half up, as OpenMMLab has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.data.mirroring import Hflip, flipped
from vmamba.data.preprocessing import Augmentation, Preprocessing
from vmamba.data.segmentation.masks import Labels
from vmamba.errors import ConfigError

#: Crops that are tried until no class fills too much of one.
_TRIES = 10


@dataclass(frozen=True)
class Resizing:
    """How large images are shown.

    Attributes:
        box: longest and shortest side: images are resized, keeping their shape, to fit into it; None leaves them as
            they are.
    """

    box: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.box is not None and not 1 <= self.box[1] <= self.box[0]:
            raise ConfigError(f"resize={list(self.box)}: want the longest side and the shortest, such as [2048, 512]")

    def size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """The size, ``scale`` times the box, that an image is shown at; without a box, times its own."""
        factor = scale
        if self.box is not None:
            long, short = (int(side * scale + 0.5) for side in self.box)
            factor = min(long / max(height, width), short / min(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def to_tensor(image: Any) -> Tensor:
    """Pixels ``(c, h, w)``: of a PIL image uint8, of an array float32, which is of full depth."""
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    array = np.array(image, np.uint8)  # a copy, since torch wants to be able to write
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels ``(c, h, w)`` of either dtype at another size, bilinear; uint8 is rounded."""
    if tuple(image.shape[1:]) == size:
        return image
    larger = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    return larger if image.is_floating_point() else larger.round_().clamp_(0, 255).to(torch.uint8)


def normalised(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels as the network takes them: float32, mean and deviation taken out; 8 bits count from 0 to 1."""
    pixels = image if image.is_floating_point() else image.float().div_(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Random changes to an image and its labels.

    Attributes:
        scale: smallest and largest factor on the size.
        max_class_share: of a crop's labelled pixels that one class may fill; such crops are drawn anew, ten times.
        hflip: probability of a left-right flip, or alternate.
        colour: strength of changes of brightness, contrast, saturation and hue, each made with probability one half;
            1 is upstream's (an eighth, a half, a half, a twentieth of the colour circle), 0 none.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    max_class_share: float = 0.75
    hflip: Hflip = 0.5
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] < 100:
            raise ConfigError(f"scale={list(self.scale)}: want the smallest and the largest factor, such as [0.5, 2.0]")
        if not 0 < self.max_class_share <= 1:
            raise ConfigError(f"max_class_share={self.max_class_share}: want a share above 0, up to 1 (off)")

    @classmethod
    def of(
        cls, augmentation: Augmentation, scale: tuple[float, float], share: float, preprocessing: Preprocessing
    ) -> SegmentationAugmentation:
        """What a training configuration asks for.

        Raises:
            ConfigError: a change that would not be made to labels alike, or of colours that these images lack.
        """
        a = augmentation
        for name, value, neutral in (
            ("crop_scale", a.crop_scale, (1.0, 1.0)),
            ("crop_ratio", a.crop_ratio, (1.0, 1.0)),
            ("auto_augment", a.auto_augment, "none"),
            ("random_erasing", a.random_erasing, 0.0),
            ("shift", a.shift, 0.0),
        ):
            if value is not None and (tuple(value) if isinstance(value, list) else value) != neutral:
                raise ConfigError(
                    f"augmentation.{name}={value}: segmentation has hflip and color_jitter there, and its own sizes "
                    "with task_options.scale and task_options.resize; leave it out"
                )
        if preprocessing.full_depth and a.color_jitter:
            raise ConfigError(
                f"augmentation.color_jitter={a.color_jitter}: changes of colour are made for 8-bit images, and these "
                f"have {preprocessing.in_chans} channel(s) of full depth; give 0"
            )
        return cls(scale, share, a.hflip or 0.0, a.color_jitter or 0.0)


class TrainTransform:
    """An image and its labels to a crop of both: ``(in_chans, H, W)`` float32 and ``(H, W)`` int64.

    Resized, cropped, flipped, coloured, normalised; what lies beyond the image is 0 and ignored.
    """

    def __init__(
        self, preprocessing: Preprocessing, resizing: Resizing, augmentation: SegmentationAugmentation, ignore: int
    ) -> None:
        self.preprocessing = preprocessing
        self.resizing = resizing
        self.augmentation = augmentation
        self.ignore = ignore
        self._colour = _photometric(augmentation.colour, preprocessing.in_chans)

    def __call__(self, image: Any, labels: Labels) -> tuple[Tensor, Tensor]:
        """A random crop."""
        a, p = self.augmentation, self.preprocessing
        pixels = to_tensor(image)
        factor = float(torch.empty(()).uniform_(*a.scale)) if a.scale[0] < a.scale[1] else a.scale[0]
        height, width = labels.shape
        size = self.resizing.size(height, width, factor)
        pixels = resized(pixels, size)
        # Nearest, with the same centres as the image's pixels; no library resizes uint16.
        mask = torch.from_numpy(labels.astype(np.int32))[None]
        if tuple(labels.shape) != size:
            mask = F.interpolate(mask[None].double(), size, mode="nearest-exact")[0].to(torch.int32)
        top, left = self._corner(mask[0])
        window = (slice(None), slice(top, top + p.height), slice(left, left + p.width))
        pixels, mask = pixels[window], mask[window]
        if flipped(a.hflip, lambda: float(torch.rand(1))):
            pixels, mask = pixels.flip(-1), mask.flip(-1)
        if self._colour is not None:
            pixels = self._colour(pixels)
        pixels, target = normalised(pixels, p), mask[0].long()
        beyond = (0, p.width - pixels.shape[2], 0, p.height - pixels.shape[1])
        return F.pad(pixels, beyond), F.pad(target, beyond, value=self.ignore)

    def _corner(self, mask: Tensor) -> tuple[int, int]:
        """A crop's top left corner."""
        height, width = self.preprocessing.height, self.preprocessing.width
        room = [max(0, have - want) for have, want in zip(mask.shape, (height, width), strict=True)]
        for _ in range(_TRIES):
            top, left = (int(torch.randint(each + 1, ())) for each in room)
            if self.augmentation.max_class_share >= 1 or not any(room):
                break
            shown = mask[top : top + height, left : left + width]
            counts = torch.bincount(shown[shown != self.ignore])
            if (counts > 0).sum() > 1 and counts.max() < self.augmentation.max_class_share * counts.sum():
                break
        return top, left


def _photometric(strength: float, channels: int) -> Callable[[Any], Any] | None:
    if strength == 0:
        return None
    from torchvision.transforms import v2

    def around(width: float) -> tuple[float, float]:
        return max(0.0, 1 - width * strength), 1 + width * strength

    changes: list[Any] = [v2.ColorJitter(brightness=around(1 / 8)), v2.ColorJitter(contrast=around(1 / 2))]
    if channels == 3:
        changes += [v2.ColorJitter(saturation=around(1 / 2)), v2.ColorJitter(hue=min(0.5, 0.05 * strength))]
    combined: Callable[[Any], Any] = v2.Compose([v2.RandomApply([change], p=0.5) for change in changes])
    return combined


class EvalTransform:
    """An image to the pixels of each of its views, ``(in_chans, h, w)`` float32, unmirrored.

    At scale 1 alone as `Resizing` says; at several, each that many times the image's own size, as upstream has it.
    """

    def __init__(self, preprocessing: Preprocessing, resizing: Resizing, scales: tuple[float, ...] = (1.0,)) -> None:
        self.preprocessing = preprocessing
        self.resizing = resizing
        self.scales = scales

    def __call__(self, image: Any) -> tuple[list[Tensor], tuple[int, int]]:
        """The views, and the image's height and width."""
        pixels = to_tensor(image)
        height, width = pixels.shape[1:]
        own = self.resizing if self.scales == (1.0,) else Resizing()
        shown = [resized(pixels, own.size(height, width, scale)) for scale in self.scales]
        return [normalised(each, self.preprocessing) for each in shown], (height, width)
