"""``"mamba"``: the CUDA kernel of the mamba-ssm package (arXiv 2312.00752), where that is installed with it.

The operators call the package's compiled module, ``selective_scan_cuda``, not the ``selective_scan_fn`` above it. Its
``fwd`` and ``bwd`` are called alike from release 1.2 to 2.3 and have outputs of known shapes: each is an operator that
compiles. Inside an operator, ``selective_scan_fn`` would have to run forward again for each backward. Nor does a scan
need what ``import mamba_ssm`` brings along (transformers, Triton, TileLang), which may be missing or broken.

The kernel takes u, delta, B and C in one dtype, in which it also returns y and takes its gradient. Here that is always
float32: a 16-bit y would break what `vmamba.scan.selective_scan` promises, and overflows in float16.

Its gradients of A, B, C, D and delta_bias are atomic sums and may differ from run to run in the last bits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import BackendError
from vmamba.kernels.gradients import differentiable
from vmamba.kernels.interface import Obstacle, ScanCall, ScanRun, record

_KERNEL = "selective_scan_cuda"
_PLACES_A_STATE = 2048  # the kernel saves a state, and the decay up to it, each so many places of the sequence
_MOST_STATES = 256
_MOST_CHANNELS = 65_535  # blocks along a grid's second axis, one a channel
_MOST_SAVED = 2**31 - 1

# PyPI's release builds the scan unless told to skip it, the development branch only when told to keep it.
_INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"
# Without dependencies, or pip would replace torch too; without its cache, which holds the wheel that lacks the scan.
_REINSTALL = (
    "MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=FALSE pip install --no-build-isolation --no-deps "
    "--force-reinstall --no-cache-dir mamba-ssm"
)


# What stands in the way.


def machine_obstacle() -> Obstacle | None:
    """Tell apart: not installed, installed without its CUDA scan, no GPU, and a scan that does not load.

    Python is asked anew each time, so that what is installed or mended meanwhile is found; a file that failed to load
    is not loaded again.
    """
    if not _is_there(_KERNEL):
        if not _is_there("mamba_ssm"):
            return Obstacle("the mamba-ssm package is not installed", f"needs a CUDA GPU and `{_INSTALL}`{_nvcc()}")
        return Obstacle(
            f"mamba-ssm{_version()} is installed without its CUDA scan ({_KERNEL} is missing)",
            f"reinstall it with `{_REINSTALL}`{_nvcc()}",
        )
    if not torch.cuda.is_available():
        return Obstacle("torch sees no CUDA GPU", "needs an NVIDIA GPU and a CUDA build of torch")
    if failure := _load_failure():
        return Obstacle(
            f"the CUDA scan of mamba-ssm{_version()} does not load ({failure})",
            f"rebuild it against this torch with `{_REINSTALL}`{_nvcc()}",
        )
    return None


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """It runs 16- and 32-bit types, at most 256 states and 65,535 channels, and what it can count in 32 bits."""
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return Obstacle(f"mamba-ssm's kernel has no {call.dtype}", "convert to float32")
    if call.initial:
        return Obstacle("mamba-ssm's kernel begins with no state", "leave initial_state out")
    if call.last and call.gradients:
        return Obstacle(
            "mamba-ssm's kernel has no gradient of the last state", "ask for it under torch.no_grad() or leave it out"
        )
    if call.states > _MOST_STATES:
        return Obstacle(f"mamba-ssm's kernel has at most {_MOST_STATES} states, not {call.states}", "use fewer states")
    if call.channels is not None and call.channels > _MOST_CHANNELS:
        return Obstacle(
            f"mamba-ssm's kernel has at most {_MOST_CHANNELS:,} channels (k·d), not {call.channels:,}",
            "use fewer channels",
        )
    if call.elements is not None and call.length:
        saved = call.elements // call.length * _saved_states(call.length) * call.states
        if saved > _MOST_SAVED:
            return Obstacle(
                f"mamba-ssm's kernel finds the states it saves by a 32-bit number and, past {_MOST_SAVED:,} of them, "
                f"computes wrong values without a word; this call saves b·k·d·⌈l/{_PLACES_A_STATE}⌉·n = {saved:,}",
                "use smaller batches",
            )
    return None


def details() -> dict[str, str]:
    """What will run, for people."""
    return {"mamba-ssm": _version().strip() or "of unknown version", "gradients": "atomic sums"}


def _is_there(name: str) -> bool:
    # A module that is loaded need not have a spec, without which find_spec raises.
    module = sys.modules.get(name)
    if isinstance(module, ModuleType):
        return not _is_stand_in(module)
    spec = importlib.util.find_spec(name)
    return spec is not None and not hasattr(spec.loader, "vmamba_stand_in")


def _is_stand_in(module: object) -> bool:
    """Whether it is this package's own under that name (`vmamba.integrations.mamba_ssm`), which would call us back."""
    return hasattr(module, "__vmamba_stand_in__")


def _version() -> str:
    try:
        return " " + importlib.metadata.version("mamba-ssm")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nvcc() -> str:
    wanted = f"nvcc of CUDA {torch.version.cuda}" if torch.version.cuda else "nvcc"
    return f", which takes {wanted} where mamba-ssm's releases have no wheel for this torch"


def _load_failure() -> str:
    """Why the compiled module does not load, or an empty string."""
    if _is_stand_in(sys.modules.get(_KERNEL)):
        return "this package stands in for it"
    if hasattr(sys.modules.get(_KERNEL), "fwd"):
        return ""
    spec = importlib.util.find_spec(_KERNEL)
    file = None if spec is None else spec.origin
    return _load_failure_of(file, os.stat(file).st_mtime_ns if file and os.path.exists(file) else 0)


@functools.cache
def _load_failure_of(file: str | None, changed: int) -> str:
    try:
        kernel = _kernel()
        if _is_stand_in(kernel):
            return "this package stands in for it"
        return "" if hasattr(kernel, "fwd") else f"{_KERNEL} has no function fwd"
    except Exception as error:  # whatever an extension made for another torch may raise as it loads
        return " ".join(str(error).split()) or type(error).__name__


def _kernel() -> Any:
    return importlib.import_module(_KERNEL)


# The operators.


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.selective_scan`. What is not float32 becomes it."""
    tensors = tuple(None if t is None else t.float() for t in (u, delta, A, B, C, D, delta_bias))
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y: Tensor = torch.ops.vmamba.mamba_scan(*tensors, delta_softplus, save)[0]
    return y


def selective_scan_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with a gate, and the last state, without gradients; begins with no state."""
    if initial_state is not None:
        raise BackendError('mamba-ssm\'s kernel begins with no state; use backend="oflex" or "torch"')
    tensors = tuple(None if t is None else t.float() for t in (u, delta, A, B, C, D, delta_bias))
    y, saved = torch.ops.vmamba.mamba_scan(*tensors, delta_softplus, True)
    last = saved[:, :, -1, 1::2].detach()  # beside each state stands the decay up to it
    return (y if z is None else y * torch.nn.functional.silu(z.float())), last


@torch.library.custom_op("vmamba::mamba_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``y``, and the states that backward starts from if asked to save. All tensors: float32."""
    _check_size(u, A)
    record(ScanRun("mamba", "selective_scan"))
    if not u.numel():
        return _empty(u), _empty_states(u, A, save)
    no_z = None
    y, saved = _kernel().fwd(*map(_readable, (u, delta, A, B, C, D, no_z, delta_bias)), delta_softplus)
    return y.contiguous(), saved if save else _empty_states(u, A, False)


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _empty(u), _empty_states(u, A, others[-1])


@torch.library.custom_op("vmamba::mamba_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D and delta_bias, empty where the input is None."""
    inputs = (u, delta, A, B, C, D, delta_bias)
    if not u.numel():
        return tuple(u.new_empty(0) if t is None else _empty(t).zero_() for t in inputs)  # type: ignore[return-value]
    no_z = no_output = no_dz = None
    tensors = map(_readable, (u, delta, A, B, C, D, no_z, delta_bias, dy))
    gradients = _kernel().bwd(*tensors, saved, no_output, no_dz, delta_softplus, False)
    found = zip(gradients, inputs, strict=True)
    return tuple(u.new_empty(0) if t is None else g.to(t.dtype).contiguous() for g, t in found)  # type: ignore[return-value]


@_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, u: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(u.new_empty(0) if t is None else _empty(t) for t in (u, *others[:6]))


differentiable("mamba_scan", _scan, _scan_backward, 7)


def _check_size(u: Tensor, A: Tensor) -> None:
    """For compiled graphs, which are made before sizes are known, and whoever calls the operator by hand."""
    _, channels, length = u.shape
    call = ScanCall("selective_scan", u.device.type, u.dtype, A.shape[1], u.numel(), channels=channels, length=length)
    obstacle = call_obstacle(call)
    if obstacle is not None:
        raise BackendError(f'{obstacle.reason}; {obstacle.mend}, or use backend="torch"')


def _readable(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _empty_states(u: Tensor, A: Tensor, save: bool) -> Tensor:
    b, channels, length = u.shape
    return u.new_empty((b, channels, _saved_states(length), 2 * A.shape[1]) if save else (0,))


def _saved_states(length: int) -> int:
    return (length + _PLACES_A_STATE - 1) // _PLACES_A_STATE
