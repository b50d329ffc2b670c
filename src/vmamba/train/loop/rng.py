"""The random number generators that training draws from: seeded, captured and put back."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info


def seed_everything(seed: int, process: int = 0) -> None:
    """Seed python, numpy and torch (all devices); other processes of the same run draw other numbers."""
    words = np.random.SeedSequence([seed, process]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def seed_for_sample(seed: int, epoch: int, index: int) -> None:
    """Seed python, numpy and torch's CPU generator for one sample of one epoch; GPUs' generators are left alone."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=12).digest()
    words = struct.unpack("<3I", digest)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


def mirrored(seed: int, epoch: int, index: int) -> bool:
    """Whether a sample's turn is to be mirrored: in even epochs, or in odd ones, as its index has it."""
    digest = hashlib.blake2b(struct.pack("<2q", seed, index), digest_size=1).digest()
    return (digest[0] + epoch) % 2 == 1


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the CPU's generators back afterwards; in a loading process nothing else draws from them, so not there."""
    if get_worker_info() is not None:
        yield
        return
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def rng_state() -> dict[str, Any]:
    """The state of python's, numpy's and torch's generators, as plain values and tensors; waits for no device."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
