"""What a training configuration's ``task_options`` may say for segmentation, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vmamba.data.segmentation.loading import MaskOptions
from vmamba.data.segmentation.masks import IGNORE
from vmamba.data.segmentation.transforms import Resizing
from vmamba.errors import ConfigError
from vmamba.inference.tiling import Tiling
from vmamba.tasks.options import StoredOptions


@dataclass(frozen=True)
class InferenceOptions(StoredOptions):
    """How images go through the network when it is measured and asked; stored with its weights.

    Attributes:
        resize: longest and shortest side that images are resized to fit into, keeping their shape; none = as they are.
        mode: whole (at once), or slide (in windows).
        window: side of a window, pixels; by default the crops' that were trained on.
        stride: pixels from one window to the next; by default two thirds of the window.
        blend: what a window's scores count: mean, triangular or gaussian.
        scales: factors on the image's own size; more than one are averaged, and resize then has no part.
        flip: whether each scale is shown mirrored too.
    """

    resize: tuple[int, int] | None = None
    mode: Literal["whole", "slide"] = "whole"
    window: int | None = None
    stride: int | None = None
    blend: Literal["mean", "triangular", "gaussian"] = "mean"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        Resizing(self.resize)
        if not self.scales or not all(0 < scale < 100 for scale in self.scales):
            raise ConfigError(f"scales={list(self.scales)}: want factors above 0, such as [0.5, 1.0, 1.5]")

    def tiling(self, crop: int) -> Tiling:
        """How images go through, for a network that was trained on crops of this side."""
        window = self.window or crop
        stride = self.stride or max(1, window * 2 // 3)
        return Tiling(self.mode, (window, window), (stride, stride), self.blend)


@dataclass(frozen=True)
class TrainingOptions:
    """What is learnt from images and masks, and how.

    Attributes:
        classes: ade20k, a list of names, or a file of names (and colours); by default counted in the masks.
        ignore_index: the label of pixels that are neither learnt nor counted.
        reduce_zero_label: whether 0 in a mask means such a pixel and other values are one class less, as in ADE20K.
        mask_values: the value in a mask that stands for each class, such as [0, 255].
        loss: cross_entropy, or dice (Dice and cross entropy, added).
        class_weights: none, balanced (by how rare a class's pixels are), {class: weight} or a CSV file.
        auxiliary_weight: what the auxiliary head's loss counts beside the decode head's.
        scale: smallest and largest factor on the size of a training image.
        max_class_share: of a training crop that one class may fill.
        crops: random crops of each training image in an epoch.
    """

    classes: Any = None
    ignore_index: int = IGNORE
    reduce_zero_label: bool = False
    mask_values: tuple[int, ...] = ()
    loss: Literal["cross_entropy", "dice"] = "cross_entropy"
    class_weights: Any = None
    auxiliary_weight: float = 0.4
    scale: tuple[float, float] = (0.75, 1.5)
    max_class_share: float = 0.75
    crops: int = 1

    def __post_init__(self) -> None:
        if self.auxiliary_weight < 0 or self.crops < 1:
            raise ConfigError(
                f"auxiliary_weight={self.auxiliary_weight}, crops={self.crops}: want 0 or more, 1 or more"
            )

    @property
    def masks(self) -> MaskOptions:
        """What concerns mask files."""
        return MaskOptions(self.classes, self.ignore_index, self.reduce_zero_label, self.mask_values)
