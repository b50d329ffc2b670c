"""``"mamba"``: an adapter to the CUDA kernel of the mamba-ssm package, where that package has it."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from vmamba.kernels.interface import Obstacle, ScanCall, ScanRun, record

_MOST_STATES = 256
_INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"


@functools.cache
def machine_obstacle() -> Obstacle | None:
    """Tell apart: not installed, installed without its CUDA scan, broken, and no GPU."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return Obstacle("the mamba-ssm package is not installed", f"needs a CUDA GPU and `{_INSTALL}`")
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return Obstacle(
            "mamba-ssm is installed without its CUDA scan (selective_scan_cuda is missing)",
            f"reinstall it with `{_INSTALL} --force-reinstall --no-cache-dir`",
        )
    try:
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError) as error:  # an extension built for another torch
        return Obstacle(
            f"mamba-ssm does not import ({error})",
            f"rebuild it against this torch with `{_INSTALL} --force-reinstall --no-cache-dir`",
        )
    if not torch.cuda.is_available():
        return Obstacle("torch sees no CUDA GPU", "needs an NVIDIA GPU and a CUDA build of torch")
    return None


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """It runs CUDA tensors of 16- and 32-bit types, with at most 256 states."""
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return Obstacle(f"mamba-ssm's kernel has no {call.dtype}", "convert to float32")
    if call.states > _MOST_STATES:
        return Obstacle(f"mamba-ssm's kernel has at most {_MOST_STATES} states, not {call.states}", "use fewer states")
    return None


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
    """See `vmamba.scan.selective_scan`.

    The kernel wants one dtype for u, delta, B and C: the widest of theirs, so that no step is rounded.
    """
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    common = u.dtype if all(t.dtype == u.dtype for t in (delta, B, C)) else torch.float32
    u, delta, B, C = (t.to(common) for t in (u, delta, B, C))
    D, delta_bias = (None if t is None else t.float() for t in (D, delta_bias))
    record(ScanRun("mamba", "selective_scan"))
    y: Tensor = interface.selective_scan_fn(
        u, delta, A.float(), B, C, D=D, z=None, delta_bias=delta_bias, delta_softplus=delta_softplus
    )
    return y.float()
