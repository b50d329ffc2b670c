"""``--print_config``: the values that a command would use, as YAML, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Options with a dot in their names.
GROUPS = ("data", "augmentation")


def annotated(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """YAML text with a comment on each line.

    Args:
        values: plain values, those of a group in a mapping.
        origins: where a value comes from, by dotted name; else it is a default.
    """
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and name in GROUPS:
            rows += [(f"{name}:", "")]
            rows += [(f"  {line}", comment) for line, comment in _rows(value, origins, f"{name}.")]
        else:
            rows += _rows({name: value}, origins, "")
    width = min(max((len(line) for line, comment in rows if comment), default=0), 40)
    return "".join(f"{line:<{width}}  # {comment}\n" if comment else f"{line}\n" for line, comment in rows)


def _rows(values: Mapping[str, Any], origins: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        yield f"{name}: {_text(value)}", origins.get(f"{prefix}{name}", "default")


def _text(value: Any) -> str:
    import yaml

    # As the only member of a list in brackets it takes one line, whatever it is.
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.strip()[1:-1]
