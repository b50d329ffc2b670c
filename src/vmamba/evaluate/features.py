"""Images as vectors: what a trained model's head sees of each, kept while it predicts and written as one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.output import write_atomically
from vmamba.tasks.trained import Trained


@contextmanager
def watch_head(trained: Trained, seen: list[Tensor]) -> Iterator[None]:
    """Within it, each forward pass appends its pooled features ``(b, c)`` to ``seen``, float32 and on the CPU.

    Raises:
        ConfigError: the model's head sees something else than one vector an image.
    """

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        if features.ndim != 2:
            raise ConfigError(
                f"features: the head of a model for {trained.task.name} sees {tuple(features.shape)}, not one vector "
                "an image; leave features out"
            )
        seen.append(features.detach().float().cpu())

    hook = trained.task.parts(trained.model).head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def write_features(path: Path, features: Sequence[Tensor], names: Sequence[Path]) -> None:
    """Write ``features (N, c)``, float32, and ``names (N,)`` as arrays of an ``.npz`` file, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    vectors, words = torch.cat(list(features)).numpy(), np.array([str(name) for name in names])
    write_atomically(path, lambda temporary: np.savez(temporary, features=vectors, names=words))
