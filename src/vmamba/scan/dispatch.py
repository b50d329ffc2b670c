"""Who is asked: the table of scan backends, best first, and the choice of one for a call.

Who decides, strongest first: the call's own argument, ``with vmamba.backend(...)``, the environment variable
``VMAMBA_SELECTIVE_SCAN_BACKEND``, the model's option. A named backend that cannot run is an error; only ``None`` falls
through the table. The choice is made before any operator is called, since what surrounds a call (a transform of
`torch.func`, forward-mode differentiation) may be something that an operator cannot refuse by itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from vmamba import _torch
from vmamba.errors import BackendError, nearest
from vmamba.kernels import mamba_ssm, native, torch_prefix, triton
from vmamba.kernels.interface import Kernels, Obstacle, Operator, ScanCall
from vmamba.kernels.triton import xpu
from vmamba.scan import schema

ENVIRONMENT_VARIABLE = "VMAMBA_SELECTIVE_SCAN_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: what ``selective_scan_backend`` calls it.
        summary: what it is.
        kernels: device type -> the module that answers for it there; ``"*"`` stands for every device.
        operators: the module whose ``selective_scan``, and ``ss2d_scan`` and ``ssd_scan`` where it has them, take the
            checked tensors of a call. The last one is there for the devices whose ``kernels`` have it.
        transformable: whether `torch.func` and forward mode can go through it.
    """

    name: str
    summary: str
    kernels: Mapping[str, Kernels]
    operators: Any
    transformable: bool = False

    def on(self, device: str) -> Kernels | None:
        """Who answers for it on ``device`` (a ``torch.device.type``), or None."""
        return self.kernels.get(device, self.kernels.get("*"))

    def machine_obstacle(self, device: str) -> Obstacle | None:
        """What keeps this backend from running on ``device`` of this machine, or None."""
        kernels = self.on(device)
        if kernels is None:
            served = ", ".join(sorted(self.kernels))
            return Obstacle(f"'{self.name}' has no kernel for {device} tensors", f"it runs on: {served}")
        return kernels.machine_obstacle()

    def obstacle(self, call: ScanCall) -> Obstacle | None:
        """What keeps this backend from running ``call`` here, or None."""
        kernels = self.on(call.device)
        if kernels is None:
            return self.machine_obstacle(call.device)
        if call.op == "ssd_scan" and not hasattr(kernels, "ssd_scan"):
            return Obstacle(
                f"'{self.name}' has no kernel for Mamba-2's scan on {call.device} tensors", "it runs as matrix products"
            )
        if call.transformed and not self.transformable:
            return Obstacle(
                "torch.func's transforms and forward-mode differentiation cannot go through its kernels",
                "they go through PyTorch's own operations",
            )
        return kernels.machine_obstacle() or kernels.call_obstacle(call)


#: Best first: the order in which ``None`` tries them.
BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("oflex", "this package's own kernels", {"cpu": native, "cuda": triton, "xpu": xpu}, schema),
        Backend("mamba", "the mamba-ssm package's CUDA kernel", {"cuda": mamba_ssm}, mamba_ssm),
        Backend("torch", "pure PyTorch: everywhere, traceable, exportable", {"*": torch_prefix}, torch_prefix, True),
    )
}
#: What ``selective_scan_backend`` may be, as messages say it.
LEGAL = "[" + ", ".join(["None", *(f'"{name}"' for name in BACKENDS)]) + "]"

_ambient: ContextVar[str | None] = ContextVar("vmamba_backend", default=None)
_stand_ins: ContextVar[Mapping[str, Any]] = ContextVar("vmamba_stand_ins", default={})  # noqa: B039 — never changed
# The same for compilers, of which not all can read a ContextVar: they watch these and compile anew for another value.
_ambient_traced: str | None = None
_stand_ins_traced: Mapping[str, Any] = {}
_told: set[str] = set()  # device types whose fall to the slow backend a warning has named


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
    device = next(iter(BACKENDS[name].kernels))
    obstacle = BACKENDS[name].machine_obstacle(device)
    state = "available here, nothing to install" if obstacle is None else f"not available here: {obstacle}"
    return f'"{name}" ({BACKENDS[name].summary}; {state})'


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Make ``name`` the backend of every scan inside the ``with`` block that does not name its own.

    It holds for this thread, as torch's own switches do: a thread started inside does not inherit it. For those give
    the model its own ``selective_scan_backend``.

    Raises:
        BackendError: ``name`` is not one of ``None, "oflex", "mamba", "torch"``.
    """
    global _ambient_traced
    token, before = _ambient.set(check_name(name, "vmamba.backend")), _ambient_traced
    _ambient_traced = name
    try:
        yield
    finally:
        _ambient.reset(token)
        _ambient_traced = before


def ambient(default: str | None = None) -> str | None:
    """The backend asked for by the ``with`` block or else the environment, or else ``default`` (a model's own)."""
    asked = _ambient_traced if torch.compiler.is_compiling() else _ambient.get()
    return asked or _from_environment() or default


@_torch.constant_in_graphs
def _from_environment() -> str | None:
    return check_name(os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE)


def operators(
    name: str | None,
    op: Operator,
    t: torch.Tensor,
    A: torch.Tensor,
    *tensors: torch.Tensor | None,
    initial: bool = False,
    last: bool = False,
) -> Any:
    """Choose the backend of a call; return the module that runs it.

    Args:
        name: what the call asks for, None for what surrounds it and else the machine decides.
        op: the operator.
        t: ``u (b, k·d, l)`` or ``x (b, h, w, d)``.
        A: ``(k·d, n)``.
        *tensors: the call's others, of which one may ask for gradients.
        initial, last: whether it begins with a given state, and whether the one it ends with is asked for.

    Where None falls to the slow backend on an accelerator, a warning says once why.

    Raises:
        BackendError: as `choose_for`.
    """
    name = ambient() if name is None else name
    if torch.compiler.is_compiling():
        # Sizes may be open, and who needs gradients is not known yet.
        chosen = choose(name, op, t.device.type, t.dtype, torch.is_grad_enabled(), initial, last)
        return _stand_ins_traced.get(chosen) or BACKENDS[chosen].operators
    gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (t, A, *tensors))
    channels, states = A.shape
    length = t.shape[2] if op == "selective_scan" else t.shape[1] * t.shape[2]
    elements = t.shape[0] * channels * length
    transformed = _torch.is_transformed()
    call = ScanCall(
        op, t.device.type, t.dtype, states, elements, gradients, transformed, channels, length, initial, last
    )
    chosen = choose_for(name, call)
    if name is None and call.device not in ("cpu", "meta"):
        _tell_of_fall(chosen, call)
    return _stand_ins.get().get(chosen) or BACKENDS[chosen].operators


@_torch.constant_in_graphs
def choose(
    name: str | None,
    op: Operator,
    device: str,
    dtype: torch.dtype,
    gradients: bool = False,
    initial: bool = False,
    last: bool = False,
    transformed: bool = False,
) -> str:
    """`choose_for` a call of which nothing else is known. A compiled graph keeps the choice made as it was traced."""
    call = ScanCall(op, device, dtype, gradients=gradients, transformed=transformed, initial=initial, last=last)
    return choose_for(name, call)


def choose_for(name: str | None, call: ScanCall) -> str:
    """Return the name of the backend that runs this call: ``name`` itself, or for None the best that can.

    Raises:
        BackendError: the name is unknown, or the named backend cannot run the call; says why and the mend.
    """
    where = f"{call.op} on {call.device} tensors of {call.dtype}"
    if check_name(name) is not None:
        obstacle = BACKENDS[name].obstacle(call)  # type: ignore[index]
        if obstacle is None:
            return name  # type: ignore[return-value]
        able = [other for other in BACKENDS if BACKENDS[other].obstacle(call) is None]
        raise BackendError(
            f'selective_scan_backend="{name}" cannot run {where}: {obstacle.reason}. '
            f"{obstacle.mend[:1].upper()}{obstacle.mend[1:]}; or use one that can run this call here: {[None, *able]}"
        )
    for candidate in BACKENDS.values():
        if candidate.obstacle(call) is None:
            return candidate.name
    raise BackendError(f"no scan backend can run {where}")


def _tell_of_fall(name: str, call: ScanCall) -> None:
    """Warn once a device that its scans run on plain operations, which are slow there, and why nothing better does."""
    if "*" not in BACKENDS[name].kernels or call.transformed or call.device in _told:
        return
    _told.add(call.device)
    reasons = [f"{other}: {row.obstacle(call)}" for other, row in BACKENDS.items() if other != name]
    warnings.warn(
        f'scans on {call.device} run on the slow backend "{name}" ({"; ".join(reasons)}); `vmamba backends` says more. '
        f'selective_scan_backend="{name}" silences this',
        stacklevel=4,
    )


@contextmanager
def stand_in(name: str, module: Any) -> Iterator[None]:
    """Inside the ``with`` block let ``module`` do the work of backend ``name``, as exporters need."""
    global _stand_ins_traced
    before = _stand_ins.get()
    _stand_ins_traced = {**before, name: module}
    token = _stand_ins.set(_stand_ins_traced)
    try:
        yield
    finally:
        _stand_ins.reset(token)
        _stand_ins_traced = before
