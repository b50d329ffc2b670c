"""The ordered table of scan backends: names, availability, reasons, and the choice of one for a call.

Importing an implementation loads no library beside torch; what it needs (a compiled kernel, another package) it loads
when it is asked whether it can run.

Who decides, strongest first: the call's own argument, ``with vmamba.backend(...)``, the environment variable
``VMAMBA_SELECTIVE_SCAN_BACKEND``, the model's configuration. A named backend that cannot run is an error;
only ``None`` falls through the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from vmamba.errors import BackendError, nearest
from vmamba.kernels import mamba_ssm
from vmamba.kernels import torch_prefix as torch_scan
from vmamba.kernels.interface import Obstacle, ScanCall
from vmamba.kernels.native import selective_scan as oflex_cpu

ENVIRONMENT_VARIABLE = "VMAMBA_SELECTIVE_SCAN_BACKEND"
LEGAL = '[None, "oflex", "mamba", "torch"]'


@dataclass(frozen=True)
class Backend:
    """One row of the table: a name and the implementation module for each device type."""

    name: str
    summary: str
    modules: Mapping[str, ModuleType]  # device type -> implementation; "*" stands for every device

    def implementation(self, device: str) -> ModuleType | None:
        """The module that serves ``device`` (a ``torch.device.type``), or None."""
        return self.modules.get(device, self.modules.get("*"))

    def machine_obstacle(self, device: str) -> Obstacle | None:
        """What keeps this backend from running on ``device`` of this machine, or None."""
        module = self.implementation(device)
        if module is None:
            served = ", ".join(sorted(self.modules))
            return Obstacle(f"'{self.name}' has no kernel for {device} tensors", f"it runs on: {served}")
        obstacle: Obstacle | None = module.machine_obstacle()
        return obstacle

    def obstacle(self, call: ScanCall) -> Obstacle | None:
        """What keeps this backend from running ``call`` here, or None."""
        obstacle = self.machine_obstacle(call.device)
        if obstacle is None:
            module = self.implementation(call.device)
            assert module is not None
            obstacle = module.call_obstacle(call)
        return obstacle


#: Best first: the order in which ``None`` tries them.
BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("oflex", "this package's own kernels", {"cpu": oflex_cpu}),
        Backend("mamba", "the mamba-ssm package's CUDA kernel", {"cuda": mamba_ssm}),
        Backend("torch", "pure PyTorch: everywhere, traceable, exportable", {"*": torch_scan}),
    )
}

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ambient: ContextVar[str | None] = ContextVar("vmamba_backend", default=None)
_stand_ins: ContextVar[Mapping[str, ModuleType]] = ContextVar("vmamba_stand_ins", default={})  # noqa: B039 — never changed


def check_name(name: object, source: str = "selective_scan_backend") -> str | None:
    """Return ``name`` if it is a legal backend name or None; raise `BackendError` that names the way out."""
    if name is None or (isinstance(name, str) and name in BACKENDS):
        return name
    if name == "core":
        ways = " or ".join(_way_out(way) for way in ("oflex", "mamba"))
        raise BackendError(
            f'{source}="core" was removed (it was "oflex" specialised for float32); legal values are {LEGAL}. '
            f"Use {ways}. `vmamba migrate FILE` rewrites old files."
        )
    hint = nearest(name, BACKENDS) if isinstance(name, str) else ""
    raise BackendError(f"{source}={name!r} is not a scan backend; legal values are {LEGAL}{hint}")


def _way_out(name: str) -> str:
    device = "cuda" if name == "mamba" else "cpu"
    obstacle = BACKENDS[name].machine_obstacle(device)
    state = "available here, nothing to install" if obstacle is None else f"not available here: {obstacle}"
    return f'"{name}" ({BACKENDS[name].summary}; {state})'


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Make ``name`` the backend of every scan inside the ``with`` block that does not name its own.

    Raises:
        BackendError: ``name`` is not one of ``None, "oflex", "mamba", "torch"``.
    """
    token = _ambient.set(check_name(name, "vmamba.backend"))
    try:
        yield
    finally:
        _ambient.reset(token)


def _constant_in_graphs(function: _Function) -> _Function:
    """What `torch.compiler.assume_constant_result` does, without its import of the compiler, which takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def ambient(default: str | None = None) -> str | None:
    """The backend asked for by the ``with`` block or else the environment, or else ``default`` (a model's own)."""
    return _ambient.get() or _from_environment() or default


@_constant_in_graphs
def _from_environment() -> str | None:
    return check_name(os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE)


@_constant_in_graphs
def choose(name: str | None, op: str, device: str, dtype: torch.dtype) -> str:
    """Return the name of the backend that runs this call: ``name`` itself, or for None the best that can.

    A compiled graph keeps the choice made when it was traced.

    Raises:
        BackendError: the name is unknown, or the named backend cannot run the call; says why and the mend.
    """
    check_name(name)
    call = ScanCall(op, device, dtype)  # type: ignore[arg-type]
    if name is not None:
        obstacle = BACKENDS[name].obstacle(call)
        if obstacle is None:
            return name
        able = [other for other in BACKENDS if BACKENDS[other].obstacle(call) is None]
        raise BackendError(
            f'selective_scan_backend="{name}" cannot run {op} on {device} tensors of {dtype}: {obstacle.reason}. '
            f"{obstacle.mend[:1].upper()}{obstacle.mend[1:]}; or use one that can run this call here: {[None, *able]}"
        )
    for candidate in BACKENDS.values():
        if candidate.obstacle(call) is None:
            return candidate.name
    raise BackendError(f"no scan backend can run {op} on {device} tensors of {dtype}")


def implementation(name: str, device: str) -> ModuleType:
    """The module of backend ``name`` that serves ``device``; the name comes from `choose`."""
    module = _stand_ins.get().get(name) or BACKENDS[name].implementation(device)
    assert module is not None
    return module


@contextmanager
def stand_in(name: str, module: ModuleType) -> Iterator[None]:
    """Inside the ``with`` block let ``module`` do the work of backend ``name``, as exporters need."""
    token = _stand_ins.set({**_stand_ins.get(), name: module})
    try:
        yield
    finally:
        _stand_ins.reset(token)
