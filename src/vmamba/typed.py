"""Plain values, as a file or a call holds them, as the typed fields of a dataclass; and types in plain words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vmamba.errors import ConfigError, nearest

_GROUP = "run"


def typed(kind: type[Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` out of plain ``values``, each of its type; nested ones are mappings still.

    Raises:
        ConfigError: an unknown field, or a value of another type; ``source`` is where they come from.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, _GROUP)
    # By dotted name; those without their prefix are not fields, but the parser's own.
    actions = {a.dest.removeprefix(f"{_GROUP}."): a for a in parser._actions if a.dest.startswith(f"{_GROUP}.")}
    for name in values:
        if "." in str(name) and name not in actions:  # else it were a part of the field before the dot
            raise ConfigError(f"{source}: {_unknown(str(name), actions)}")
    for group in {name.partition(".")[0] for name in actions if "." in name} & {*values}:
        # Of these jsonargparse takes anything.
        if not isinstance(values[group], Mapping) and not is_dataclass(values[group]):
            raise ConfigError(f"{source}: {group} takes a mapping of its fields, not {values[group]!r}")
    try:
        checked: dict[str, Any] = parser.parse_object({_GROUP: dict(values)}).run.as_dict()
    except ArgumentError as error:
        raise ConfigError(f"{source}: {_mistake(str(error), actions, values)}") from error
    return checked


def _unknown(name: str, actions: Mapping[str, argparse.Action]) -> str:
    return f"there is no {name!r}{nearest(name, actions)}"


def _mistake(message: str, actions: Mapping[str, argparse.Action], values: Mapping[str, Any]) -> str:
    """One line from jsonargparse's several."""
    if match := re.match(rf"Group '{_GROUP}' does not accept option '(.+?)'", message):
        return _unknown(match[1], actions)
    match = re.match(rf'Parser key "{_GROUP}\.(.+?)":', message)
    if match is None or match[1] not in actions or not (kind := type_in_words(actions[match[1]])):
        return " ".join(message.split())
    try:
        return f"{match[1]} takes {kind}, not {_value_at(values, match[1])!r}"
    except (AttributeError, KeyError):  # it is spelt in a way of jsonargparse's own
        return " ".join(message.split())


def _value_at(values: Any, place: str) -> Any:
    """``values["a"]["b"]`` or ``values["a.b"]``, for the place ``a.b``."""
    if not isinstance(values, Mapping):
        return attrgetter(place)(values)
    name, _, rest = place.partition(".")
    return values[place] if place in values else _value_at(values[name], rest)


def type_in_words(action: argparse.Action) -> str:
    """The type of an action's values: ``int``, ``path``, ``'stop' or 'skip'``; empty if it has none."""
    kind = getattr(action, "_typehint", None) or action.type
    return "" if kind is None else _in_words(kind)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, UnionType):
        words = any(get_origin(part) is Literal for part in parts)
        # What was a switch once and has words now still takes true and false.
        return " or ".join(_in_words(p) for p in parts if p is not NoneType and not (words and p is bool))
    if origin is dict:
        return "{name: value}"
    if isinstance(kind, type) and origin is None:
        return kind.__name__.lower()
    if origin in (tuple, list):
        return f"[{', '.join('...' if part is ... else _in_words(part) for part in parts)}]"
    return re.sub(r"\w+\.", "", str(kind))
