"""What the stand-ins do not have: an error when it is used, never when it is imported.

Projects import four names in one ``try`` and use one of them, so that a name that is not there would take the others
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError


def missing(name: str, instead: str) -> Callable[..., NoReturn]:
    """A function by the name of ``name`` that raises `NotProvidedError` when it is called.

    Args:
        name: the name as users know it, such as ``"mamba_ssm.utils.generation.decode"``.
        instead: what there is, as the end of a sentence.
    """

    def absent(*_: Any, **__: Any) -> NoReturn:
        raise NotProvidedError(f"{name} is not provided by vmamba's stand-in; {instead}")

    absent.__name__ = absent.__qualname__ = name.rpartition(".")[2]
    absent.__doc__ = f"Not provided by vmamba's stand-in; {instead}. Raises `NotProvidedError`."
    return absent
