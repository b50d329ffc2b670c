"""What a training configuration's ``task_options`` may say for detection, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vmamba.errors import ConfigError, nearest
from vmamba.tasks.run_files import typed


@dataclass(frozen=True)
class InferenceOptions:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weight file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


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


@dataclass(frozen=True)
class DetectionOptions:
    """All of ``task_options``."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DetectionOptions:
        """Sort ``task_options``.

        Raises:
            ConfigError: an unknown one, or a value of another type.
        """
        legal = {f.name: kind for kind in (TrainingOptions, InferenceOptions) for f in fields(kind)}
        parts: dict[Any, dict[str, Any]] = {TrainingOptions: {}, InferenceOptions: {}}
        for name, value in given.items():
            if name not in legal:
                raise ConfigError(
                    f"task_options: detection has no {name!r}{nearest(name, legal)}; it has {', '.join(legal)}"
                )
            parts[legal[name]][name] = _plain(value)
        training, inference = (kind(**typed(kind, values, "task_options")) for kind, values in parts.items())
        return cls(training, inference)


def inference_options(own: InferenceOptions, given: Mapping[str, Any]) -> InferenceOptions:
    """``own`` with what is given instead.

    Raises:
        ConfigError: an unknown option, or a value of another type.
    """
    legal = [f.name for f in fields(InferenceOptions)]
    for name in given:
        if name not in legal:
            raise ConfigError(
                f"options: detection is asked with {', '.join(legal)}; there is no {name!r}{nearest(name, legal)}"
            )
    values = {**own.to_dict(), **{name: _plain(value) for name, value in given.items()}}
    return InferenceOptions(**typed(InferenceOptions, values, "options"))


def _plain(value: Any) -> Any:
    """A word ``none`` is None, and tuples are lists, as in YAML."""
    return list(value) if isinstance(value, tuple) else None if value == "none" else value
