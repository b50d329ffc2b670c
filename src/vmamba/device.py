"""The device that a task computes on."""

from __future__ import annotations

import torch

from vmamba.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device called ``name``; for ``"auto"`` an accelerator if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here; the message lists those that are.
    """
    here = ["cpu"]
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            here.insert(0, accelerator.type)
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not a device; this machine has {', '.join(here)}") from None
    if device.type not in here:
        raise ConfigError(f"device={name!r} is not available; this machine has {', '.join(here)}")
    return device
