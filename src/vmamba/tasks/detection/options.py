"""What a training configuration's ``task_options`` may say for detection, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass

from vmamba.errors import ConfigError
from vmamba.tasks.options import StoredOptions


@dataclass(frozen=True)
class InferenceOptions(StoredOptions):
    """How images go through the network when it is measured and asked; stored with its weights.

    Attributes:
        resize: longest and shortest edge that images are resized to fit, keeping their shape; none = as they are.
    """

    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.resize is not None and min(self.resize) < 1:
            raise ConfigError(
                f"resize={list(self.resize)}: want the longest and the shortest edge, such as [1333, 800]"
            )


@dataclass(frozen=True)
class TrainingOptions:
    """What is learnt from images with objects.

    Attributes:
        scales: shortest edges of training images, of which one is drawn for each; empty = as resize says.
        crop: whether half of the training images are a random part, resized like the others.
    """

    scales: tuple[int, ...] = ()
    crop: bool = False

    def __post_init__(self) -> None:
        if any(scale < 1 for scale in self.scales):
            raise ConfigError(f"scales={list(self.scales)}: want numbers of pixels, such as [480, 640, 800]")
