"""Where a run computes: the device, the precision, and the processes that work on it together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vmamba.errors import ConfigError
from vmamba.train.config import TrainConfig


@contextmanager
def accelerator_for(config: TrainConfig) -> Iterator[Any]:
    """An `accelerate.Accelerator` for ``config``; accelerate's process-wide state is left as it was found.

    Raises:
        ConfigError: the device is not there, or cannot compute in the precision asked for.
    """
    from accelerate.state import AcceleratorState, GradientState, is_initialized

    ours = not is_initialized()
    try:
        yield _make_accelerator(config)
    finally:
        if ours:
            # Accelerate keeps its settings for the whole process and refuses others; it has no public way to drop them.
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _make_accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import GradientAccumulationPlugin

    wanted = config.device
    if wanted not in ("auto", "cpu") and not getattr(torch, wanted).is_available():
        raise ConfigError(f"device={wanted!r}: torch {torch.__version__} finds no such device here; use auto or cpu")
    try:
        accelerator = Accelerator(
            cpu=wanted == "cpu",
            mixed_precision=config.mixed_precision,
            # The trainer accumulates gradients itself; given so that no environment variable says otherwise.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),
        )
    except ValueError as error:
        raise ConfigError(f"device={wanted}, mixed_precision={config.mixed_precision}: {error}") from error
    if wanted not in ("auto", accelerator.device.type):
        raise ConfigError(f"device={wanted!r}, but accelerate is set up for {accelerator.device.type}; use auto")
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision=fp16 needs a GPU; use bf16 or no")
    return accelerator
