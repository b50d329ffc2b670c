"""A training configuration's plain values by dotted name: ``data.image_size`` for what stands in a group of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields of a configuration that hold fields of their own.
GROUPS = ("data", "augmentation")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `TrainConfig.to_dict` gives, without groups, by dotted name."""
    dotted: dict[str, Any] = {}
    for name, value in values.items():
        if name in GROUPS and isinstance(value, Mapping):
            dotted.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            dotted[name] = value
    return dotted


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flat`. A group that is no mapping stays as it is, whatever else there is of it."""
    values: dict[str, Any] = {}
    for name, value in dotted.items():
        group, _, inner = str(name).partition(".")
        if inner and group in GROUPS:
            if isinstance(values.setdefault(group, {}), dict):
                values[group][inner] = value
        else:
            values[name] = value
    return values
