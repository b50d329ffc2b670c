"""Where a run computes: the device, the precision, and the processes that work on it together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from vmamba.errors import ConfigError
from vmamba.evaluate.processes import made_by_one
from vmamba.train.reports.trackers import tracker_names
from vmamba.train.settings.config import TrainConfig

Made = TypeVar("Made")


@contextmanager
def accelerator_for(config: TrainConfig) -> Iterator[Any]:
    """An `accelerate.Accelerator` for ``config``; accelerate's process-wide state is left as it was found.

    Raises:
        ConfigError: the device is not there, or cannot compute in the precision asked for; a tracker is not there.
    """
    from accelerate.state import AcceleratorState, GradientState, is_initialized

    ours = not is_initialized()
    products = torch.get_float32_matmul_precision()
    try:
        accelerator = _make_accelerator(config)
        if config.tf32:
            torch.set_float32_matmul_precision("high")
        yield accelerator
    finally:
        torch.set_float32_matmul_precision(products)
        if ours:
            # Accelerate keeps its settings for the whole process and refuses others; it has no public way to drop them.
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def from_main(accelerator: Any, make: Callable[[], Made]) -> Made:
    """What ``make`` returns in the main process, in every process: only that one calls it, and the others wait.

    For what is slow or fetched from afar: data are downloaded and verified once. What it returns is pickled. A mistake
    that it raises is raised in every process, so that none waits for ever.
    """
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        return make()
    return made_by_one(make, accelerator.is_main_process, broadcast_object_list)


def _make_accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration

    trackers = tracker_names(config.trackers)
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
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))],
            # Batches lie in pinned memory where there is a GPU; copying them need not wait for it.
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=False, non_blocking=torch.cuda.is_available()
            ),
            log_with=trackers or None,
            project_config=ProjectConfiguration(logging_dir="."),  # of the run, once that is known
        )
    except ValueError as error:
        raise ConfigError(f"device={wanted}, mixed_precision={config.mixed_precision}: {error}") from error
    if wanted not in ("auto", accelerator.device.type):
        raise ConfigError(f"device={wanted!r}, but accelerate is set up for {accelerator.device.type}; use auto")
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision=fp16 needs a GPU; use bf16 or no")
    return accelerator
