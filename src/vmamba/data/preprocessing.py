"""What is done to an image before the model sees it, as data: it travels inside every weight file that we write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from vmamba.data.array_transforms import ArrayTransform
from vmamba.data.mirroring import ALTERNATE, Hflip
from vmamba.data.reading.images import convert, mode_of
from vmamba.errors import ConfigError, nearest
from vmamba.given import remembers_given

#: Takes a PIL image, or with full depth an array ``(in_chans, H, W)``.
ImageTransform = Callable[[Any], Tensor]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


@remembers_given
@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, by timm's transforms. None stands for the data set's own default.

    Attributes:
        crop_scale: Smallest and largest share of the area that a random crop keeps; [1, 1] crops nothing away.
        crop_ratio: Smallest and largest aspect ratio of a random crop.
        hflip: Probability of a left-right flip; or alternate, which flips each image in every other epoch, some in the
            first and some in the second.
        color_jitter: Strength of brightness, contrast and saturation changes, 0 = off; unused beside auto_augment
            (as in timm).
        auto_augment: A timm policy such as "rand-m9-mstd0.5-inc1"; "none" = off.
        random_erasing: Probability that a random rectangle is replaced by noise.
        shift: How far an image is moved at most before all else, pixels as they are in the file: a random number up to
            it, rounded, down or up and right or left. What comes in is black. For classification alone.
    """

    given: InitVar[frozenset[str] | None] = field(default=None, kw_only=True)
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    hflip: float | Literal["alternate"] | None = None
    color_jitter: float | None = None
    auto_augment: str | None = None
    random_erasing: float | None = None
    shift: float | None = None

    def __post_init__(self, given: frozenset[str] | None) -> None:
        for name, word in (("hflip", ALTERNATE), ("random_erasing", None)):
            value = getattr(self, name)
            if value is None or value == word:
                continue
            if isinstance(value, str) or not 0 <= value <= 1:
                hint = f", or {word!r}" if word else ""
                raise ConfigError(f"augmentation.{name}={value!r}: a probability, want 0 to 1{hint}")
        if self.color_jitter is not None and self.color_jitter < 0:
            raise ConfigError(f"augmentation.color_jitter={self.color_jitter}: want 0 (off) or more")
        if self.shift is not None and not 0 <= self.shift < float("inf"):
            raise ConfigError(f"augmentation.shift={self.shift}: want 0 (off) or a number of pixels")
        for name, top in (("crop_scale", 1.0), ("crop_ratio", float("inf"))):
            value = getattr(self, name)
            if value is not None and not 0 < value[0] <= value[1] <= top:
                limit = " ≤ 1" if top == 1.0 else ""
                raise ConfigError(f"augmentation.{name}={value}: want two numbers, 0 < smallest ≤ largest{limit}")

    def resolved(self, defaults: Augmentation) -> Augmentation:
        """This augmentation with each None replaced by the value in ``defaults``."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Augmentation(**{k: getattr(defaults, k) if v is None else v for k, v in given.items()})


#: Nothing random at all; every field set.
NO_AUGMENTATION = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "none", 0.0, 0.0)


@dataclass(frozen=True)
class Preprocessing:
    """Everything needed to turn a PIL image into the ``(in_chans, height, width)`` tensor a model expects.

    Attributes:
        image_size: Side of the square that the model sees, pixels; or its height and width.
        in_chans: 1 (grey) or 3 (RGB); any number with ``full_depth``.
        mean: Subtracted per channel from values in [0, 1].
        std: Divided by, per channel.
        interpolation: How images are resized: bicubic, bilinear or nearest.
        crop_pct: For evaluation the shorter side is resized to image_size / crop_pct and the centre cropped.
        full_depth: Whether images are float arrays as `vmamba.data.reading.arrays` reads them, not 8-bit grey or RGB.
    """

    image_size: int | tuple[int, int]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    full_depth: bool = False

    def __post_init__(self) -> None:
        if not self.full_depth:
            mode_of(self.in_chans)
        elif self.in_chans < 1:
            raise ConfigError(f"in_chans={self.in_chans}: want a number of channels, 1 or more")
        if min(self.height, self.width) < 1:
            raise ConfigError(f"image_size={self.image_size}: want a number of pixels, 1 or more")
        if len(self.mean) != self.in_chans or len(self.std) != self.in_chans:
            raise ConfigError(f"mean {self.mean} and std {self.std} must have in_chans={self.in_chans} values each")
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std}: every value must be above 0")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct={self.crop_pct}: want a share of the image, above 0 and up to 1")
        if self.interpolation not in INTERPOLATIONS:
            hint = nearest(self.interpolation, INTERPOLATIONS)
            raise ConfigError(f"interpolation={self.interpolation!r}: want one of {INTERPOLATIONS}{hint}")

    @property
    def height(self) -> int:
        """Of the model's input, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Of the model's input, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    def eval_transform(self) -> ImageTransform:
        """The deterministic transform for validation, test and prediction: PIL image of any mode → float32 tensor."""
        if self.full_depth:
            return ArrayTransform(self)
        from timm.data.transforms_factory import create_transform

        transform = create_transform(
            input_size=(self.in_chans, self.height, self.width),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
        )
        return _Pipeline(self.in_chans, transform)

    def train_transform(self, augmentation: Augmentation = NO_AUGMENTATION) -> ImageTransform:
        """The random transform for training images; fields of ``augmentation`` that are None do nothing.

        Raises:
            ConfigError: timm does not know the ``auto_augment`` policy.
        """
        from timm.data.transforms_factory import create_transform

        a = augmentation.resolved(NO_AUGMENTATION)
        if a == NO_AUGMENTATION:
            return self.eval_transform()
        if self.full_depth:
            self._refuse_colour(a)
            return ArrayTransform(self, a)
        try:
            transform = create_transform(
                input_size=(self.in_chans, self.height, self.width),
                is_training=True,
                scale=a.crop_scale,
                ratio=a.crop_ratio,
                hflip=0.5 if a.hflip == ALTERNATE else a.hflip or 0.0,
                color_jitter=a.color_jitter or None,  # type: ignore[arg-type]  # timm takes None
                auto_augment=None if a.auto_augment in ("none", "") else a.auto_augment,
                interpolation=self.interpolation,
                mean=self.mean,
                std=self.std,
                re_prob=a.random_erasing or 0.0,
                re_mode="pixel",
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise ConfigError(
                f"augmentation.auto_augment={a.auto_augment!r} is not a timm policy ({error}); "
                'for example "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", or "none"'
            ) from error
        return _Pipeline(self.in_chans, transform, a.hflip or 0.0, a.shift or 0.0)

    def _refuse_colour(self, a: Augmentation) -> None:
        for name, value in (("color_jitter", a.color_jitter), ("auto_augment", a.auto_augment)):
            if value not in (None, 0.0, "none", ""):
                raise ConfigError(
                    f"augmentation.{name}={value}: changes of colour are made for 8-bit RGB, and these images have "
                    f"{self.in_chans} channel(s) of full depth; leave it out (crops, flips and erasing serve them)"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` undoes it."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values if self.full_depth else {k: v for k, v in values.items() if k != "full_depth"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuild from `to_dict`'s result.

        Raises:
            ConfigError: a field is missing, unknown, or out of range.
        """
        names = {f.name for f in fields(cls)}
        if set(values) | {"full_depth"} != names:
            raise ConfigError(f"preprocessing has fields {sorted(values)}, want {sorted(names)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


class _Pipeline:
    """Mode conversion, then a timm transform with what timm lacks. A class, so that loader workers can pickle it."""

    def __init__(self, in_chans: int, transform: Any, hflip: Hflip = 0.0, shift: float = 0.0) -> None:
        from vmamba.data.image_transforms import Shift, quickened

        self.in_chans = in_chans
        self.transform: Any = quickened(transform, hflip)
        if shift:
            self.transform.transforms.insert(0, Shift(shift))

    def __call__(self, image: Image.Image) -> Tensor:
        tensor: Tensor = self.transform(convert(image, self.in_chans))
        return tensor

    def __repr__(self) -> str:
        return f"convert(in_chans={self.in_chans}) → {self.transform!r}"
