"""From the keywords of a Python call to a typed configuration: what `vmamba.train` and its like take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vmamba.data import DATASETS, DataConfig
from vmamba.errors import ConfigError, nearest
from vmamba.typed import typed

Config = TypeVar("Config")


def from_keywords(kind: type[Config], fields: Mapping[str, Any], source: str) -> Config:
    """A configuration of the fields that are given, each of its type: a path may be a string, a tuple a list.

    Args:
        kind: the dataclass.
        fields: its fields; groups of fields as their dataclass or as mappings.
        source: what messages call the caller.

    Raises:
        ConfigError: an unknown field, a value of another type, or one that ``kind`` refuses.
    """
    legal = [one.name for one in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in fields:
        if name not in legal:
            raise ConfigError(f"{source} has no {name!r}{nearest(name, legal)}; it takes {', '.join(legal)}")
    plain = {name: value for name, value in fields.items() if not hasattr(value, "__dataclass_fields__")}
    checked = typed(kind, {name: _words(value) for name, value in plain.items()}, source)
    return kind(**{name: checked[name] if name in plain else value for name, value in fields.items()})


def as_data(data: Any, source: str, dataset: str | None = None, own_images: str = "folder") -> DataConfig:
    """Images as a `DataConfig`.

    Args:
        data: one; the name of a data set; the path of a tree of class folders; or a mapping of a `DataConfig`'s fields.
        source: what messages call the caller.
        dataset: the data set where none is named; else, of a folder, ``own_images``.
        own_images: the data set that a folder is.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(data, DataConfig):
        return data
    if isinstance(data, str) and data in DATASETS:
        return DataConfig(data)
    if isinstance(data, (str, os.PathLike)):
        if not Path(data).is_dir():
            raise ConfigError(
                f"{source}: data={os.fspath(data)!r} is neither a folder nor a data set; data sets: "
                f"{', '.join(DATASETS)}{nearest(os.fspath(data), DATASETS)}"
            )
        return DataConfig(dataset or own_images, Path(data))
    if isinstance(data, Mapping):
        named = dataset or (own_images if data.get("data_dir") is not None else None)
        default = {} if named is None else {"dataset": named}
        return from_keywords(DataConfig, {**default, **data}, f"{source}'s data")
    raise ConfigError(
        f"{source}: data is a {type(data).__name__}; want a DataConfig, a data set's name, a folder or a mapping"
    )


def _words(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
