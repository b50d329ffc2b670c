"""What the migration looks for, and a place in a text where it was found."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The value that was removed.
OLD = "core"

#: The option, and the environment variable that overrides it; compared in lower case with underscores.
_KEYS = {"selective_scan_backend", "vmamba_selective_scan_backend"}

#: The option and the old value next to each other inside one string: a shell command, an override, a nested document.
_BURIED = re.compile(r"selective[_-]scan[_-]backend\W{1,5}core\b", re.IGNORECASE)

#: Text that something else fills in later: OmegaConf and shell ``${…}``, Jinja ``{{…}}``.
_TEMPLATE = re.compile(r"\$\{|\{\{")


class UnparsableError(Exception):
    """A text that is not what its file name says; the message says where and why."""


@dataclass(frozen=True)
class Spot:
    """Characters ``start`` to ``end`` of a text: the old value itself, or what a person has to look at."""

    start: int
    end: int
    kind: str
    by_hand: bool = False
    note: str = ""


def is_key(word: object) -> bool:
    """Whether ``word`` names the option: in any case, with ``-`` or ``_``, after ``--`` or a dotted path."""
    if not isinstance(word, str):
        return False
    return word.lstrip("-").rpartition(".")[2].replace("-", "_").lower() in _KEYS


def is_option_word(word: object) -> bool:
    """Whether ``word`` names the option in a flat list of words, where its value is the next one.

    A bare ``selective_scan_backend`` in a list may as well be one name among others.
    """
    return is_key(word) and isinstance(word, str) and ("-" in word or "." in word)


def is_buried(value: str) -> bool:
    """Whether the option and the old value stand side by side inside ``value``."""
    return _BURIED.search(value) is not None


def buried_spot(text: str, start: int, end: int) -> Spot:
    """The spot of what `is_buried` found in the string that fills ``text`` from ``start`` to ``end``."""
    match = _BURIED.search(text, start, end)  # not found where escapes stand between the words
    if match is not None:
        start, end = match.span()
    return Spot(start, end, "inside a longer string", by_hand=True)


def doubt(value: str) -> str:
    """Why a value other than the old one may still mean it, or an empty string."""
    if _TEMPLATE.search(value):
        return "filled in from elsewhere"
    return f'"{OLD}" among other words' if re.search(rf"\b{OLD}\b", value) else ""
