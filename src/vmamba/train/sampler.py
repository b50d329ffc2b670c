"""The order of the training samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A permutation that depends on the seed and the epoch only, so that a resumed run sees the same order.

    ``epoch`` is set from outside. There is no ``set_epoch``: accelerate's loaders would call it with their own count,
    which starts at 0 in every process.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        word = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order: list[int] = torch.randperm(self.length, generator=torch.Generator().manual_seed(word)).tolist()
        return iter(order)

    def __len__(self) -> int:
        return self.length
