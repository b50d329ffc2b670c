"""Values of a configuration, whatever they come as (YAML, NumPy, a yacs node): the plain Python ones, or an error."""

from __future__ import annotations

import math
import numbers

from vmamba.errors import ConfigError


def whole(name: str, value: object, other: str = "") -> int:
    """A whole number; ``4.0`` is one, ``True`` and ``"4"`` are not.

    Raises:
        ConfigError: it is none; ``other`` is what the message allows besides.
    """
    number = _finite(value)
    if number is not None and number.is_integer():
        return int(number)
    raise ConfigError(f"{name} {value!r} is not a whole number{other}")


def real(name: str, value: object) -> float:
    """A finite number.

    Raises:
        ConfigError: it is none.
    """
    number = _finite(value)
    if number is not None:
        return number
    raise ConfigError(f"{name} {value!r} is not a number")


def switch(name: str, value: object) -> bool:
    """True or False; 1 and 0 are taken for them.

    Raises:
        ConfigError: it is neither.
    """
    if _is_bool(value) or _finite(value) in (0, 1):
        return bool(value)
    raise ConfigError(f"{name} {value!r} is neither true nor false")


def _finite(value: object) -> float | None:
    number = float(value) if isinstance(value, numbers.Real) and not _is_bool(value) else math.nan
    return number if math.isfinite(number) else None


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's too
