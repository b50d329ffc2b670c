"""Options that a task alone has, out of plain values: sorted into their dataclasses, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from vmamba.errors import ConfigError, nearest
from vmamba.typed import typed

Training = TypeVar("Training")
Inference = TypeVar("Inference", bound="StoredOptions")


@dataclass(frozen=True)
class StoredOptions:
    """How images go through a network when it is measured and asked; stored with its weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weight file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def sorted_options(
    task: str, training: type[Training], inference: type[Inference], given: Mapping[str, Any]
) -> tuple[Training, Inference]:
    """A configuration's ``task_options`` as the dataclasses ``training`` and ``inference``, whose fields they are.

    Raises:
        ConfigError: one that ``task`` does not have, or a value of another type.
    """
    names = [{f.name for f in fields(kind)} for kind in (training, inference)]  # type: ignore[arg-type]
    legal = [f.name for kind in (training, inference) for f in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in legal:
            raise ConfigError(f"task_options: {task} has no {name!r}{nearest(name, legal)}; it has {', '.join(legal)}")
    learnt, asked = ({name: _plain(value) for name, value in given.items() if name in own} for own in names)
    return training(**typed(training, learnt, "task_options")), inference(**typed(inference, asked, "task_options"))


def changed(own: Inference, task: str, given: Mapping[str, Any]) -> Inference:
    """``own`` with what is given instead.

    Raises:
        ConfigError: an option that ``task`` does not have, or a value of another type.
    """
    legal = [f.name for f in fields(own)]
    for name in given:
        if name not in legal:
            raise ConfigError(
                f"options: {task} is asked with {', '.join(legal)}; there is no {name!r}{nearest(name, legal)}"
            )
    values = {**own.to_dict(), **{name: _plain(value) for name, value in given.items()}}
    return type(own)(**typed(type(own), values, "options"))


def _plain(value: Any) -> Any:
    """A word ``none`` is None, and tuples are lists, as in YAML."""
    return list(value) if isinstance(value, tuple) else None if value == "none" else value
