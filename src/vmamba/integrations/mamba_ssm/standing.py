"""Put the stand-ins where Python looks for modules, and take them away again.

A finder in front of ``sys.meta_path`` answers for the foreign names alone. It asks the others first, so that a real
package wins, but not what only looks like one: a folder of the same name without ``__init__.py``, and a compiled module
that does not load here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_loader
from types import FrameType, ModuleType
from typing import Any

from vmamba.errors import ConfigError, nearest
from vmamba.integrations.mamba_ssm import cross_scan
from vmamba.integrations.mamba_ssm.stand_in import StandIn
from vmamba.integrations.mamba_ssm.table import COMPILED, FAMILIES, REFUSED, TABLE, family_of, is_package, submodules


@dataclass(eq=False)
class _Layer:
    """One call of `install` or one block of `standing_in`."""

    families: frozenset[str]
    replace: bool
    permanent: bool = False
    set_aside: dict[str, Any] = field(default_factory=dict)  # real modules that this layer took out of sys.modules


_lock = threading.RLock()
_layers: list[_Layer] = []


def install(*names: str, replace: bool = False) -> None:
    """Have stand-ins found from now on. A second call changes nothing.

    Args:
        names: any of ``"selective_scan_cuda"``, ``"selective_scan_cuda_oflex"``, ``"selective_scan_cuda_core"``,
            ``"causal_conv1d_cuda"``, ``"mamba_ssm"``, ``"causal_conv1d"``, ``"selective_scan"``; none means all.
        replace: stand in for a real package too.

    Raises:
        ConfigError: a name without a stand-in.
    """
    wanted = _families(names)
    with _lock:
        have = [layer.families for layer in _layers if layer.permanent and layer.replace >= replace]
        missing = wanted.difference(*have)
        if missing:
            _enter(_Layer(missing, replace, permanent=True), behind=True)


@contextmanager
def standing_in(*names: str, replace: bool = False) -> Iterator[None]:
    """Have stand-ins found inside the ``with`` block; blocks may be nested.

    What was imported keeps working behind the block, but ``import`` no longer finds it. Modules belong to the process:
    threads that run meanwhile see the stand-ins too.

    Args:
        names, replace: as in `install`.

    Raises:
        ConfigError: a name without a stand-in.
    """
    layer = _Layer(_families(names), replace)
    with _lock:
        _enter(layer)
    try:
        yield
    finally:
        with _lock:
            _leave(layer)


def _families(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name in REFUSED:
            raise ConfigError(f"{name} has no stand-in: {REFUSED[name]}")
        if name not in FAMILIES:
            raise ConfigError(f"{name!r} has no stand-in; legal: {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return frozenset(names or FAMILIES)


def _enter(layer: _Layer, behind: bool = False) -> None:
    # What is permanent lies under the blocks that are open, which take away only what is theirs.
    _layers.insert(0, layer) if behind else _layers.append(layer)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if layer.replace:
        for name, module in list(sys.modules.items()):
            if family_of(name) in layer.families and not isinstance(module, StandIn):
                layer.set_aside[name] = sys.modules.pop(name)


def _leave(layer: _Layer) -> None:
    _layers.remove(layer)
    active = frozenset[str]().union(*(other.families for other in _layers))
    real = {family_of(name) for name in layer.set_aside}
    for name, module in list(sys.modules.items()):
        family = family_of(name)
        if isinstance(module, StandIn) and family in layer.families and (family in real or family not in active):
            del sys.modules[name]
    sys.modules.update(layer.set_aside)
    if not _layers:
        sys.meta_path.remove(_FINDER)
        cross_scan.restore()


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if cross_scan.is_named(fullname):
            return cross_scan.adapting(self._real(fullname, path, target))
        family = family_of(fullname)
        layers = [layer for layer in list(_layers) if family in layer.families]
        if fullname in REFUSED and any(layer.families == set(FAMILIES) for layer in _layers):
            if self._real(fullname, path, target) is None:
                _tell_import(
                    f"No module named {fullname!r}: vmamba has no stand-in for it, since {REFUSED[fullname]}", fullname
                )
            return None
        if not layers:
            return None
        parent = fullname.rpartition(".")[0]
        if parent and not isinstance(sys.modules.get(parent), StandIn):
            return None  # of a real package
        if not parent and not any(layer.replace for layer in layers):
            real = self._real(fullname, path, target)
            if real is not None and real.loader is not None and real.origin is not None:
                if fullname in COMPILED and isinstance(real.loader, ExtensionFileLoader):
                    real.loader = _LoadedOrStoodIn(real.loader)
                    return real
                return None
        if fullname not in TABLE:
            inside = submodules(parent)
            _tell_import(
                f"No module named {fullname!r}: vmamba's stand-in for {parent} has {', '.join(inside)}"
                f"{nearest(fullname.rpartition('.')[2], inside)}",
                fullname,
            )
            return None
        return spec_from_loader(
            fullname, _StandInLoader(), origin="vmamba.integrations.mamba_ssm", is_package=is_package(fullname)
        )

    def _real(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        """What Python would find without this finder."""
        for finder in list(sys.meta_path):
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


def _tell_import(message: str, name: str) -> None:
    """Raise for who imports; who only asks, with `importlib.util.find_spec`, is to get None."""
    asking: FrameType | None = sys._getframe(1)
    while asking is not None and asking.f_code.co_name in ("find_spec", "_find_spec"):
        asking = asking.f_back
    if asking is not None and asking.f_code.co_name == "_find_and_load_unlocked":
        raise ModuleNotFoundError(message, name=name)


class _StandInLoader(Loader):
    vmamba_stand_in = True  # told from a real one before it is loaded

    def create_module(self, spec: ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert isinstance(module, StandIn)
        module.fill()


class _LoadedOrStoodIn(Loader):
    """Loads a compiled module that is installed, or where it does not load makes a stand-in."""

    def __init__(self, real: ExtensionFileLoader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        import torch  # noqa: F401 — holds the libraries that the compiled module is linked against

        try:
            return self._real.create_module(spec)
        except (ImportError, OSError) as error:
            why = " ".join(str(error).split())
            print(f"vmamba: stands in for {spec.name}, which does not load ({why})", file=sys.stderr)
            return StandIn(spec.name, f"the installed one does not load ({why})")

    def exec_module(self, module: ModuleType) -> None:
        module.fill() if isinstance(module, StandIn) else self._real.exec_module(module)


_FINDER = _Finder()
