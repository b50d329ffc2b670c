"""A stand-in as a module: says what it is, loads what it offers when asked, and names what it does not have."""

from __future__ import annotations

import dis
import importlib
import sys
from types import ModuleType
from typing import Any

from vmamba.errors import VMambaError, nearest
from vmamba.integrations.mamba_ssm.table import RELEASES, TABLE, Offer, family_of, is_package, submodules
from vmamba.version import __version__

#: Attribute that every stand-in has and no real module: how this package's own code tells them apart.
MARK = "__vmamba_stand_in__"

_PACKAGE = "vmamba.integrations.mamba_ssm"


class NotProvidedError(VMambaError, NotImplementedError):
    """Called something that can be imported from a stand-in but is not provided by it."""


class StandIn(ModuleType):
    """The module that ``import`` finds under a foreign name."""

    def __init__(self, name: str, why: str = "it is not installed") -> None:
        super().__init__(name, _text(name, TABLE[name], why))
        self.__dict__[MARK] = True
        self.__dict__["__version__"] = f"{RELEASES[family_of(name)]}+vmamba.{__version__}"
        if is_package(name):
            self.__dict__["__path__"] = []  # no folder: its submodules come from the table

    def fill(self) -> None:
        """Load all of what it offers whole, and list that for ``import *``."""
        offer = TABLE[self.__name__]
        listed = list(offer.names)
        if offer.whole:
            source = importlib.import_module(f"{_PACKAGE}.{offer.whole}")
            listed += source.__all__
            self.__dict__.update({name: getattr(source, name) for name in source.__all__})
        self.__dict__["__all__"] = sorted(listed)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            offer = TABLE[self.__name__]
            if name in offer.names:
                value = getattr(importlib.import_module(f"{_PACKAGE}.{offer.names[name]}"), name)
                self.__dict__[name] = value
                return value
            if name in submodules(self.__name__):
                return importlib.import_module(f"{self.__name__}.{name}")
        message = f"vmamba's stand-in for {self.__name__} has no {name!r}; it has {', '.join(self._has())}"
        message += nearest(name, self._has())
        if not name.startswith("__") and _by_from_import():
            # For an AttributeError Python raises another ImportError, which does not tell what there is.
            raise ImportError(message, name=self.__name__)
        raise AttributeError(message, name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._has()})

    def _has(self) -> list[str]:
        offered = {*self.__dict__.get("__all__", ()), *TABLE[self.__name__].names, *submodules(self.__name__)}
        return sorted(offered)


def _text(name: str, offer: Offer, why: str) -> str:
    return (
        f"vmamba's stand-in for {name}: {offer.about}.\n\n{why[0].upper()}{why[1:]}; this module has its names and "
        f"computes with vmamba {__version__}. See vmamba.integrations.mamba_ssm."
    )


def _by_from_import() -> bool:
    """Whether the attribute that is being looked up was named in ``from module import …``."""
    frame = sys._getframe(2)
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]
