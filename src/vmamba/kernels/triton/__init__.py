"""``"oflex"`` on GPUs: the scans as Triton kernels, which PyTorch brings along; nothing is compiled on installation.

This module says what can run; importing it imports neither Triton nor a driver.
"""

from __future__ import annotations

import functools
import importlib
import platform

import torch

from vmamba.kernels.interface import Obstacle, ScanCall

_LEAST_TRITON = (3, 6)
_LEAST_CAPABILITY = (8, 0)
#: The modules of the two operators' kernels, which import Triton.
SCANS = ("vmamba.kernels.triton.scans.selective_scan", "vmamba.kernels.triton.scans.ss2d_scan")
#: What their maps may be.
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


@functools.cache
def machine_obstacle() -> Obstacle | None:
    """Tell apart: no GPU, one too old, no Triton, one too old or broken, and GPUs that nobody has tried."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        if built is None:
            return Obstacle("this torch is a build without GPU support", "install a CUDA build of torch")
        return Obstacle("torch sees no GPU", "needs an NVIDIA GPU and its driver")
    return triton_obstacle() or _capability_obstacle()


def triton_obstacle() -> Obstacle | None:
    """What is wrong with the Triton of this machine, or None."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        if platform.system() == "Windows":
            return Obstacle("PyTorch comes without Triton on Windows", "use Linux, or WSL 2 on Windows")
        return Obstacle(f"Triton does not import ({error})", "reinstall torch, which brings it along")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _LEAST_TRITON:
        least = ".".join(map(str, _LEAST_TRITON))
        return Obstacle(
            f"Triton {triton.__version__} is older than {least}", "install torch ≥ 2.10, which brings it along"
        )
    return None


def _capability_obstacle() -> Obstacle | None:
    if torch.version.hip is not None:
        return None  # untested; `details` says so
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        name = torch.cuda.get_device_name()
        return Obstacle(
            f"the {name} has compute capability {'.'.join(map(str, capability))}, the kernels need 8.0",
            "use a GPU of 2020 or later (Ampere)",
        )
    return None


@functools.cache
def processors(device: torch.device) -> int:
    """The multiprocessors of a GPU. Elsewhere the kernels are only interpreted: there are 2."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).gpu_subslice_count)
    return 2


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """They run tensors of 16- and 32-bit types, of any size and any number of states."""
    if call.dtype not in DTYPES:
        return Obstacle(f"the GPU kernels have no {call.dtype}", "convert to float32")
    return None


def details() -> dict[str, str]:
    """What will run, for people."""
    from vmamba.kernels.triton.scans.plan import rows_of_table

    if torch.version.hip is not None:
        return {"triton": "untested on ROCm"}
    version = importlib.import_module("triton").__version__
    count = processors(torch.device("cuda", torch.cuda.current_device()))
    return {"triton": version, "multiprocessors": str(count), **rows_of_table()}
