"""The order of the training samples, and their randomness: both follow from seed, epoch and sample alone.

So training can stop after any batch and go on from there: batches are skipped without being loaded, and neither the
number of loading processes nor what these have loaded ahead makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from vmamba.data.mirroring import take_turn
from vmamba.train.loop.rng import kept_generators, mirrored, seed_for_sample

#: Epoch and index of a sample. The epoch travels with the index because loading processes may outlive an epoch.
Key = tuple[int, int]


class EpochSampler(Sampler[Key]):
    """The keys of an epoch's samples, in an order that depends on the seed and the epoch only.

    With ``taken`` an epoch is so many samples of an endless row of passes, and goes on where the one before ended.

    ``epoch`` is set from outside. There is no ``set_epoch``: accelerate's loaders would call it with their own count,
    which starts at 0 in every process.
    """

    def __init__(self, length: int, seed: int, taken: int | None = None) -> None:
        self.length = length
        self.seed = seed
        self.taken = taken
        self.epoch = 0

    def __iter__(self) -> Iterator[Key]:
        if self.taken is None:
            return iter([(self.epoch, index) for index in self._pass(self.epoch)])
        first, last = self.epoch * self.taken, (self.epoch + 1) * self.taken
        passes = range(first // self.length, -(-last // self.length))
        begun = first - passes[0] * self.length
        keys = [(number, index) for number in passes for index in self._pass(number)]
        return iter(keys[begun : begun + self.taken])

    def _pass(self, number: int) -> list[int]:
        word = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        order: list[int] = torch.randperm(self.length, generator=torch.Generator().manual_seed(word)).tolist()
        return order

    def __len__(self) -> int:
        return self.length if self.taken is None else self.taken


class SeededSamples(Dataset[Any]):
    """Another data set's samples by their keys, each read with generators seeded for it.

    Training's own generators (Mixup, stochastic depth) are as before afterwards.
    """

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """A batch's samples, for which PyTorch's loader asks at once."""
        try:
            with kept_generators():
                return [self._read(epoch, index) for epoch, index in keys]
        finally:
            take_turn(None)

    def _read(self, epoch: int, index: int) -> Any:
        seed_for_sample(self.seed, epoch, index)
        take_turn(mirrored(self.seed, epoch, index))
        return self.samples[index]
