"""A training run: from a configuration to a folder with weights, measurements and pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.errors import LoadingError, TrainingError
from vmamba.output import check_writable_folder
from vmamba.tasks.protocol import Measurement
from vmamba.train.accelerator import accelerator_for, from_main
from vmamba.train.course import Course, go_on
from vmamba.train.folder.resume import decided, resumed_config
from vmamba.train.folder.run_folder import RunFolder, new_run_folder
from vmamba.train.loop.trainer import Trainer
from vmamba.train.processes import others_answer
from vmamba.train.reports.report import Reporter
from vmamba.train.settings.config import TrainConfig
from vmamba.train.signals import StopSignals

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["TrainConfig", "TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_folder: where its files are.
        epochs: epochs done in all.
        best_epoch: the epoch, from 1, whose weights ``best.safetensors`` holds.
        best_val: their figures on the validation samples, by the task's names.
        test: what they do on the test samples; None where the data set has none.
        seconds: time this call took.
    """

    run_folder: Path
    epochs: int
    best_epoch: int
    best_val: Mapping[str, float]
    test: Measurement | None
    seconds: float


def train(config: TrainConfig, console: Console | None = None) -> TrainResult:
    """Train as ``config`` says. Nothing is written before configuration, data and model have been checked.

    The epoch that is best on the validation samples by the figure ``select_by`` (the task's others decide between
    equals) is kept as ``best.safetensors``; only its weights are measured on the test samples, once, at the end. After
    every ``save_every`` epochs, and inside them where that is asked for, the folder holds all that ``resume`` needs to
    go on to the same result, bit for bit on the same machine with the same number of threads. SIGTERM, SIGUSR1 and the
    first Ctrl-C save and stop at the end of the step; while training lasts they are handled here.

    Args:
        config: what to do.
        console: where to report progress; silent if None.

    Raises:
        ConfigError, DataError, OutputError, CheckpointError: something given cannot be used; says what would mend it.
        TrainingError: the loss is no longer finite; a process that loads images, or another one of the run, is gone.
        TrainingStopped: SIGTERM or SIGUSR1 came.
        KeyboardInterrupt: Ctrl-C came; the folder was left in order.
    """
    started = time.monotonic()
    config = decided(config)
    resuming = config.resume is not None
    config = (resumed_config(config) if resuming else config).resolved()
    with accelerator_for(config) as accelerator:
        config = config.for_processes(accelerator.num_processes)
        path = _common_path(accelerator, config)
        shown = console if accelerator.is_main_process else None
        if shown is not None:  # before the data, which may take long
            shown.print(_intention(config, path), highlight=False, soft_wrap=True, markup=False)
        config.learnt.check_model(config.model, config.model_options)  # before the data, which take longer
        task, subsets = from_main(accelerator, lambda: config.learnt.load(config.data, config.task_options))
        trainer = Trainer(config, task, subsets, accelerator)
        report = Reporter(shown, task, config.epochs or 1, trainer.steps_per_epoch)
        signals = StopSignals()
        course = Course(config, task, subsets, trainer, RunFolder(path), report, signals)
        try:
            with others_answer(accelerator, path), report:
                if resuming:
                    course.restore()
                else:
                    course.begin()
                course.trackers.start(path, config)
                with signals:
                    course.train()
                test = course.finish()
        except KeyboardInterrupt:
            course.interrupted()
            raise
        except LoadingError as error:
            raise TrainingError(f"{error}. What was saved last is kept; go on with: {go_on(path)}") from error
        finally:
            course.trackers.finish()
        best = course.best
        assert best is not None
        return TrainResult(path, len(course.rows), best.epoch, best.val, test, time.monotonic() - started)


def _intention(config: TrainConfig, path: Path) -> str:
    """What is about to happen, in one line."""
    place = "" if config.data.data_dir is None else f" in {config.data.data_dir}"
    return (
        f"{'train' if config.resume is None else 'go on training'} {config.model} on {config.data.dataset}{place}, "
        f"{config.epochs} epochs, output to {path}"
    )


def _common_path(accelerator: Any, config: TrainConfig) -> Path:
    if config.resume is not None:
        check_writable_folder(config.resume)
        return config.resume
    return from_main(accelerator, lambda: new_run_folder(config))
