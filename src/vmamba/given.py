"""Dataclasses that remember which of their fields the caller named, even where a value equals the default.

Going on with a training run needs it: ``save_every=1`` must replace a stored 5 although 1 is the default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

#: Keyword that `dataclasses.replace` passes on, since it copies every field that it finds in the dataclass.
_CARRIED = "given"


def remembers_given(cls: Class) -> Class:
    """Decorate a dataclass whose first field is ``given: InitVar[frozenset[str] | None]``, keyword-only, default None.

    `given_fields` tells what was named when an instance was made. What `dataclasses.replace` makes counts as given what
    the original did, and what was replaced. The keyword stays out of the signature, and so out of parsers built on it.
    """
    plain: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **named: Any) -> None:
        plain(self, *args, **named)
        names = [field.name for field in fields(cls)][: len(args)]
        words = list(named)
        if named.get(_CARRIED) is not None:
            # `replace` names first what it was asked to replace, then copies all fields in their order.
            words = [*named[_CARRIED], *words[: words.index(_CARRIED)]]
        object.__setattr__(self, _CARRIED, frozenset([*names, *words]) - {_CARRIED})

    signature = inspect.signature(plain)
    kept = [parameter for name, parameter in signature.parameters.items() if name != _CARRIED]
    init.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    init.__annotations__ = {name: kind for name, kind in plain.__annotations__.items() if name != _CARRIED}
    cls.__init__ = init  # type: ignore[misc]
    return cls


def given_fields(config: Any) -> frozenset[str]:
    """The names of the fields that the maker of ``config`` gave."""
    names: frozenset[str] = getattr(config, _CARRIED)
    return names
