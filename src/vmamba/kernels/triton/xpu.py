"""The Triton kernels on Intel GPUs: PyTorch's Triton serves them, nobody has tried ours there."""

from __future__ import annotations

import functools

import torch

from vmamba.kernels.interface import Obstacle
from vmamba.kernels.triton import call_obstacle, triton_obstacle

__all__ = ["call_obstacle", "details", "machine_obstacle"]


@functools.cache
def machine_obstacle() -> Obstacle | None:
    """What keeps the kernels from running on an Intel GPU of this machine, or None."""
    if not (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return Obstacle("torch sees no Intel GPU", "needs an Intel GPU and an XPU build of torch")
    return triton_obstacle()


def details() -> dict[str, str]:
    """What will run, for people."""
    return {"triton": "untested on Intel GPUs"}
