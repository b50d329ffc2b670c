"""A training run: from a configuration to a folder with weights, measurements and pictures."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.errors import CheckpointError, ConfigError, TrainingError
from vmamba.evaluate.pictures import save_figure
from vmamba.models import model_config
from vmamba.output import check_writable_folder, create_folder
from vmamba.tasks.protocol import Measurement, Subsets, Task
from vmamba.tasks.trained import load_trained, save_trained, weight_metadata
from vmamba.train.accelerator import accelerator_for, from_main
from vmamba.train.config import TrainConfig
from vmamba.train.curves import curves_figure
from vmamba.train.loop import Trainer
from vmamba.train.report import Reporter
from vmamba.train.resume import check_epochs, check_same_data, check_same_settings, deciding_settings, resumed_config
from vmamba.train.rows import EpochRow, rank
from vmamba.train.run_folder import RunFolder, new_run_folder
from vmamba.weights import read_weights

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["TrainConfig", "TrainResult", "train"]

#: Seconds between two drawings of the curves while a run goes on.
DRAW_EVERY = 60.0


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
    every ``save_every`` epochs the folder holds all that ``resume`` needs to go on to the same result, bit for bit on
    the same machine with the same number of workers and threads; an interrupt in between costs the epochs since.

    Args:
        config: what to do.
        console: where to report progress; silent if None.

    Raises:
        ConfigError, DataError, OutputError, CheckpointError: something given cannot be used; says what would mend it.
        TrainingError: the loss is no longer finite.
        KeyboardInterrupt: as it came, after the folder was left in order.
    """
    started = time.monotonic()
    resuming = config.resume is not None
    config = (resumed_config(config) if resuming else config).resolved()
    with accelerator_for(config) as accelerator:
        path = _common_path(accelerator, config)
        shown = console if accelerator.is_main_process else None
        if shown is not None:  # before the data, which may take long
            shown.print(_intention(config, path), highlight=False, soft_wrap=True, markup=False)
        model_config(config.model, **config.model_options)  # before the data, which take longer
        task, subsets = from_main(accelerator, lambda: config.learnt.load(config.data, config.task_options))
        trainer = Trainer(config, task, subsets, accelerator)
        report = Reporter(shown, task, config.epochs or 1, trainer.steps_per_epoch)
        course = _Course(config, task, subsets, trainer, RunFolder(path), report)
        with report:
            try:
                if resuming:
                    course.restore()
                else:
                    course.begin()
                course.train()
                test = course.finish()
            except KeyboardInterrupt:
                course.interrupted()
                raise
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


class _Course:
    """What a run goes through, from its first epoch to its last: the trainer, the folder, and what was measured."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        subsets: Subsets,
        trainer: Trainer,
        folder: RunFolder,
        report: Reporter,
    ) -> None:
        self.config = config
        self.task = task
        self.subsets = subsets
        self.trainer = trainer
        self.folder = folder
        self.report = report
        self.main = bool(trainer.accelerator.is_main_process)
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None
        self.saved = 0  # epochs that the files on disk stand for
        self.told: set[str] = set()  # damaged files that were reported
        self.fingerprint = from_main(trainer.accelerator, subsets.fingerprint)  # once: it looks at every file
        self.metadata = weight_metadata(config.model, trainer.parts.model, task)

    def begin(self) -> None:
        """Create the folder, with a state and weights to load from the start."""
        if self.main:
            create_folder(self.folder.path)
            self.folder.write_config(replace(self.config, output=self.folder.path, resume=None))
        self.save()
        self._introduce("new run")

    def restore(self) -> None:
        """Take up the stored run."""
        state = self.folder.read_state()
        try:
            check_same_settings(state["settings"], self.config, self.folder.path)
            check_same_data(state["data"], self.fingerprint, self.folder.path)
            processes = self.trainer.accelerator.num_processes
            if state["processes"] != processes:
                raise ConfigError(
                    f"{self.folder.path} was trained by {state['processes']} process(es), this is {processes}; "
                    "start as many as then"
                )
            self.rows = [EpochRow.from_flat(row, self.task) for row in state["rows"]]
            check_epochs(self.config, len(self.rows), self.folder.path)
            self.best = next((row for row in self.rows if row.epoch == state["best_epoch"]), None)
            self.trainer.load_state_dict(state["engine"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder.state} does not fit this run ({error}); was it changed?") from error
        self.saved = len(self.rows)
        self.best = from_main(self.trainer.accelerator, lambda: self._settled(state))
        if self.main:
            self.folder.write_config(replace(self.config, output=self.folder.path, resume=None))
        self._introduce(f"resumed after {len(self.rows)} of {self.config.epochs} epochs")

    def _settled(self, state: Mapping[str, Any]) -> EpochRow | None:
        """Bring the files into line with the state, wherever the run was stopped; returns the best epoch."""
        best = self.best
        if best is not None and "best_sha256" not in state:  # of an older version
            if not self.folder.best.is_file():
                raise CheckpointError(f"{self.folder.best} is missing; without it the run cannot be resumed")
            if read_weights(self.folder.best).metadata.get("epoch") != str(best.epoch):
                # Stopped after a better epoch but before its state was saved. That epoch comes again, and wins again;
                # until then the file must hold an epoch that this run knows.
                best = self.rows[-1]
                save_trained(self.folder.best, self.trainer.weights(), self._described(best.epoch))
        elif "best_sha256" in state:
            self.folder.settle(state)
        last = self.folder.last
        if not last.is_file() or read_weights(last).metadata.get("epoch") != str(len(self.rows)):
            save_trained(last, self.trainer.weights(), self._described(len(self.rows)))
        self.folder.write_metrics(self.rows, self.task)
        return best

    def _described(self, epoch: int) -> dict[str, str]:
        return {**self.metadata, "epoch": str(epoch)}

    def _introduce(self, how: str) -> None:
        subsets, preprocessing = self.subsets, self.task.preprocessing
        count = sum(p.numel() for p in self.trainer.measured_model.parameters())
        parts = {"train": subsets.train, "val": subsets.val, "test": subsets.test}
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
        self.report.say(f"{how}: {self.folder.path}")
        precision = "float32" if self.config.mixed_precision == "no" else self.config.mixed_precision
        self.report.say(
            f"{self.config.model} ({count / 1e6:.2f} M parameters) on {self.config.data.dataset}: {sizes} images, "
            f"{self.task.summary}, {preprocessing.height}×{preprocessing.width}, "
            f"{self.trainer.accelerator.device}, {precision}"
        )
        self._tell_skipped()

    def _tell_skipped(self) -> None:
        """Say which files were found damaged since the last time, in any of the processes."""
        from accelerate.utils import gather_object

        if self.config.data.unreadable != "skip":
            return
        skipped = list(dict.fromkeys(gather_object(list(self.subsets.skipped))))
        if new := [name for name in skipped if name not in self.told]:
            more = f" and {len(new) - 10} more" if len(new) > 10 else ""
            self.report.say(f"left out {len(skipped)} unreadable image(s); new: {', '.join(new[:10])}{more}")
            self.told.update(new)

    def train(self) -> None:
        """Train the epochs that are still to do."""
        drawn = time.monotonic()
        for epoch in range(len(self.rows), self.config.epochs or 1):
            started = time.monotonic()
            self.report.start_epoch(epoch)

            def step(done: int, figures: Mapping[str, float], speed: float, epoch: int = epoch) -> None:
                self.report.step(epoch, done, figures, speed)

            trained = self.trainer.train_epoch(epoch, step if self.report.live else None)
            row = EpochRow(
                epoch=epoch + 1,
                train=trained.figures,
                val=self._validated(epoch),
                lr=trained.lr,
                seconds=time.monotonic() - started,
                images_per_second=trained.images_per_second,
            )
            better = self.best is None or self._rank(row) > self._rank(self.best)
            self.rows.append(row)
            if better:
                self._keep(row)
            if (epoch + 1) % self.config.save_every == 0 or epoch + 1 == self.config.epochs:
                self.save()
            self.report.end_epoch(row, better)
            self._tell_skipped()
            if time.monotonic() - drawn > DRAW_EVERY:
                self._draw_curves()
                drawn = time.monotonic()

    def _validated(self, epoch: int) -> dict[str, float]:
        measurement = self.trainer.evaluate(self.subsets.val)
        self.metadata.update(measurement.metadata())
        measured = measurement.figures
        figures = {metric.name: measured[metric.name] for metric in self.task.metrics}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the validation {name} is {value} after epoch {epoch + 1}. The weights of the epoch before are "
                    "kept. Start again with a lower lr or a longer warm-up"
                )
        return figures

    def _keep(self, row: EpochRow) -> None:
        """Make the weights as they are now, measured in ``row``, the best; they take their place at the next save."""
        self.best = row
        if self.main:
            save_trained(self.folder.next_best, self.trainer.weights(), self._described(row.epoch))

    def _rank(self, row: EpochRow) -> tuple[float, ...]:
        """The better epoch has the higher rank; of equals the earlier one stays."""
        return rank(row, self.task, self.config.select_by or self.task.headline)

    def save(self) -> None:
        """Write everything that `restore` and `load_trained` need, as one: the state counts, the others follow it."""
        state = self.trainer.state_dict()
        if self.main:
            self.folder.commit(
                {
                    "engine": state,
                    "rows": [row.flat() for row in self.rows],
                    "best_epoch": None if self.best is None else self.best.epoch,
                    "data": self.fingerprint,
                    "settings": deciding_settings(self.config),
                    "processes": self.trainer.accelerator.num_processes,
                }
            )
            save_trained(self.folder.last, self.trainer.weights(), self._described(len(self.rows)))
            self.folder.write_metrics(self.rows, self.task)
        self.saved = len(self.rows)

    def finish(self) -> Measurement | None:
        """Measure the best weights on the test samples (the validation samples where there are none), and draw."""
        self.trainer.accelerator.wait_for_everyone()
        best = load_trained(self.folder.best).model.to(self.trainer.accelerator.device)
        test = None if self.subsets.test is None else self.trainer.evaluate(self.subsets.test, best)
        shown = test if test is not None else self.trainer.evaluate(self.subsets.val, best)
        if self.main:
            self._draw_curves()
            for name, figure in self.task.pictures(shown, "Test" if test is not None else "Validation").items():
                save_figure(figure, self.folder.picture(name))
        assert self.best is not None
        headline = next(metric for metric in self.task.metrics if metric.name == self.task.headline)
        said = f"best epoch {self.best.epoch}: validation {headline.name} {headline.text(self.best.val[headline.name])}"
        if test is not None:
            said += f", test {headline.name} {headline.text(test.figures[headline.name])} ({test.count:,} images)"
        self.report.say(said)
        self.report.say(f"run folder: {self.folder.path}")
        return test

    def interrupted(self) -> None:
        """Leave a folder that can be loaded and resumed: what is on disk already can; bring the picture up to date."""
        if not self.folder.state.is_file():
            self.report.say(f"interrupted before anything was saved in {self.folder.path}")
            return
        self.report.say(
            f"interrupted; {self.saved} of {self.config.epochs} epochs are saved. Go on with: "
            f"vmamba train --resume {shlex.quote(str(self.folder.path))}"
        )
        self._draw_curves()

    def _draw_curves(self) -> None:
        if self.main and self.rows:
            title = f"{self.config.model} on {self.config.data.dataset}"
            best = None if self.best is None else self.best.epoch
            save_figure(curves_figure(self.rows, self.task, best, title), self.folder.curves)
