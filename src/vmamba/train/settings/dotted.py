"""A training configuration's plain values by dotted name: ``data.image_size`` for what stands in a group of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmamba.train.settings.recipe_files import GROUPS


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
    """Undo `flat`."""
    values: dict[str, Any] = {}
    for name, value in dotted.items():
        group, _, inner = name.partition(".")
        if inner:
            values.setdefault(group, {})[inner] = value
        else:
            values[name] = value
    return values
