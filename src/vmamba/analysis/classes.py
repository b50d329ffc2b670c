"""A model's classes as people choose among them: for whom a class map is to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmamba.data.segmentation.classes import PixelClasses
from vmamba.errors import ConfigError, nearest
from vmamba.tasks.classification.labels import distinct_names


@dataclass(frozen=True)
class Classes:
    """What a model's logits stand for.

    Attributes:
        names: in their order, no two alike; empty of a model without classes of its whole output, such as a detector.
        background: places in ``names`` of what shows nothing of interest; only segmenters have any.
    """

    names: tuple[str, ...]
    background: tuple[int, ...] = ()

    @classmethod
    def of(cls, task: Any) -> Classes:
        """Those of a `vmamba.tasks.protocol.Task`."""
        given = getattr(task, "classes", ())
        if isinstance(given, PixelClasses):
            return cls(given.names, given.background)
        return cls(distinct_names(given, getattr(task, "ids", ())))

    def index(self, label: str) -> int:
        """The place of a class that is named, or that is given as a number.

        Raises:
            ConfigError: no class has this name.
        """
        if label in self.names:
            return self.names.index(label)
        if label.isascii() and label.isdigit():
            return int(label)
        raise ConfigError(f"label={label!r} is no class of these weights{nearest(label, self.names)}")

    def name(self, label: int) -> str:
        """What the class is called, or else its number."""
        return self.names[label] if label < len(self.names) else str(label)
