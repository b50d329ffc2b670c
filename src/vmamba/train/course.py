"""The course of a run: what it goes through from its first epoch to its last, and what it leaves behind on the way."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmamba.errors import CheckpointError, ConfigError, OutputError, TrainingError, TrainingStopped
from vmamba.evaluate.pictures import save_figure
from vmamba.output import create_folder
from vmamba.tasks.protocol import Measurement, Subsets, Task
from vmamba.tasks.trained import load_trained, save_trained, weight_metadata
from vmamba.train.accelerator import from_main
from vmamba.train.folder.resume import check_epochs, check_same_data, check_same_settings, deciding_settings
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.loop.guard import Fault
from vmamba.train.loop.replay import write_replay
from vmamba.train.loop.trainer import Hooks, Trainer
from vmamba.train.reports.curves import curves_figure
from vmamba.train.reports.report import Reporter
from vmamba.train.reports.rows import EpochRow, rank
from vmamba.train.reports.trackers import Trackers
from vmamba.train.settings.config import TrainConfig
from vmamba.train.signals import StopSignals
from vmamba.train.watch import Decision, Watch
from vmamba.weights import read_weights

#: Seconds between two drawings of the curves while a run goes on.
DRAW_EVERY = 60.0


def go_on(path: Path) -> str:
    """The command that resumes the run in a folder."""
    return f"vmamba train --resume {shlex.quote(str(path))}"


class _Leave(Exception):  # noqa: N818 (not an error)
    """Training is to stop for a signal, once what it is in the middle of has been left."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Course(Hooks):
    """What a run goes through, from its first epoch to its last: the trainer, the folder, and what was measured."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        subsets: Subsets,
        trainer: Trainer,
        folder: RunFolder,
        report: Reporter,
        signals: StopSignals,
    ) -> None:
        self.config = config
        self.task = task
        self.subsets = subsets
        self.trainer = trainer
        self.folder = folder
        self.report = report
        self.trackers = Trackers(trainer.accelerator, trainer.steps_per_epoch)
        self.main = bool(trainer.accelerator.is_main_process)
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None
        self.saved = (0, 0)  # epochs, and steps of the next, that the files on disk stand for
        self.epoch = 0
        self._step = 0  # of the epoch, at the last update
        self._told = 0  # likewise, at the last look
        self.reported: set[str] = set()  # damaged files
        self.watch = Watch(config, trainer.accelerator, signals, trainer.look_every)
        self.fingerprint = from_main(trainer.accelerator, subsets.fingerprint)  # once: it looks at every file
        self.metadata = weight_metadata(config.model, trainer.parts.model, task)

    def begin(self) -> None:
        """Create the folder, with a state and weights to load from the start."""
        if self.main:
            create_folder(self.folder.path)
            self.folder.sweep()
            self.folder.write_config(replace(self.config, output=self.folder.path, resume=None))
        self.save()
        self._introduce("new run")

    def restore(self) -> None:
        """Take up the stored run."""
        state, path, faults = self.folder.last_whole_state()
        for fault in faults:
            self.report.say(f"{fault}; going on from {path.name}, which was saved before it")
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
        self.saved = self._position()
        self.trainer.accelerator.wait_for_everyone()  # all have read before files are moved
        self.best = from_main(self.trainer.accelerator, lambda: self._settled(state, path))
        if self.main:
            self.folder.write_config(replace(self.config, output=self.folder.path, resume=None))
        self._introduce(f"resumed after {self._described_position()}")

    def _settled(self, state: Mapping[str, Any], path: Path) -> EpochRow | None:
        """Bring the files into line with the state, wherever the run was stopped; returns the best epoch."""
        best = self.best
        if path != self.folder.state:
            self.folder.reinstate(path)
        if best is not None and "best_sha256" not in state:  # of an older version
            if not self.folder.best.is_file():
                raise CheckpointError(f"{self.folder.best} is missing; without it the run cannot be resumed")
            if read_weights(self.folder.best).metadata.get("epoch") != str(best.epoch):
                # Stopped after a better epoch but before its state was saved. That epoch comes again, and wins again;
                # until then the file must hold an epoch that this run knows.
                best = self.rows[-1]
                save_trained(self.folder.best, self.trainer.weights(), self._described(best.epoch))
        elif "best_sha256" in state:
            self.folder.settle(state, self.config.keep_last)
        last = self.folder.last
        inside = self.trainer.inside is not None  # an epoch, whose weights are not those of the epoch before
        if not last.is_file() or (not inside and read_weights(last).metadata.get("epoch") != str(len(self.rows))):
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
        if new := [name for name in skipped if name not in self.reported]:
            more = f" and {len(new) - 10} more" if len(new) > 10 else ""
            self.report.say(f"left out {len(skipped)} unreadable image(s); new: {', '.join(new[:10])}{more}")
            self.reported.update(new)

    def train(self) -> None:
        """Train the epochs that are still to do.

        Raises:
            TrainingStopped, KeyboardInterrupt: a signal came; the state is saved.
        """
        try:
            self._train()
        except _Leave as left:
            if self._position() != self.saved:
                self.trainer.look(self)
                self._save_state()
            if left.number == signal.SIGINT:
                raise KeyboardInterrupt from None
            name = signal.Signals(left.number).name
            said = f"stopped by {name}; {self._described_position()} are saved. Go on with: {go_on(self.folder.path)}"
            raise TrainingStopped(said, left.number) from None

    def _train(self) -> None:
        drawn = time.monotonic()
        self.watch.saved()
        for epoch in range(len(self.rows), self.config.epochs or 1):
            inside = self.trainer.inside
            self.epoch, self._step = epoch, 0 if inside is None else inside.step
            self._told = self._step
            started = time.monotonic() - (0.0 if inside is None else inside.seconds)
            self.report.start_epoch(epoch)
            trained = self.trainer.train_epoch(epoch, self)
            row = EpochRow(
                epoch=epoch + 1,
                train=trained.figures,
                val=self._validated(epoch),
                lr=trained.lr,
                seconds=time.monotonic() - started,
                images_per_second=trained.images_per_second,
                grad_norm=trained.readings.grad_norm,
                memory_mib=trained.readings.memory_mib,
                data_wait=trained.readings.data_wait,
            )
            self.trainer.close_epoch()
            better = self.best is None or self._rank(row) > self._rank(self.best)
            self.rows.append(row)
            if better:
                self._keep(row)
            if (epoch + 1) % self.config.save_every == 0 or epoch + 1 == self.config.epochs:
                self.save()
            self.report.end_epoch(row, better)
            self.trackers.epoch(row)
            self._tell_skipped()
            if time.monotonic() - drawn > DRAW_EVERY:
                self._draw_curves()
                drawn = time.monotonic()
            if epoch + 1 != self.config.epochs:
                self._leave_if_asked(self.watch.at_once())

    def updated(self, step: int) -> None:
        """Save where it is time to."""
        decision = self.watch.after_update(step - self._step)
        self._step = step
        if decision.save:
            self.trainer.look(self)  # no weights are saved that are not known to be finite
            self._save_state()
        self._leave_if_asked(decision)

    def measured(self, batch: int) -> None:
        """Stop where a signal asks for it; the epoch's training is done then, and its measurement comes again."""
        self._leave_if_asked(self.watch.after_batch())

    def looked(self, step: int, figures: Mapping[str, float], speed: float) -> None:
        """Move the bar, and tell the trackers from time to time."""
        self.report.step(self.epoch, step, figures, speed)
        if step // self.config.log_every > self._told // self.config.log_every:
            self.trackers.step(self.epoch, step, figures, self.trainer.lr, speed)
        self._told = step

    def faults(self, found: list[Fault]) -> None:
        """Say which updates were left out; where one is fatal, keep what it was computed from, and raise."""
        for fault in found:
            if not fault.fatal:
                self.report.say(f"{fault}; this update is left out (at most {self.config.skip_nonfinite} are)")
        fault = found[-1]
        if fault.fatal:
            write_replay(self.folder.replay, self.trainer, self.subsets, fault, self.main)
            raise TrainingError(
                f"{fault}. What was saved before is kept, and {self.folder.replay.name} holds the step's samples, "
                "weights and generators: vmamba.train.loop.replay computes it again. Start again with a lower lr or a "
                "longer warm-up, or with mixed_precision=no if it is on; or go on with skip_nonfinite, which leaves "
                "such updates out"
            )

    def _leave_if_asked(self, decision: Decision) -> None:
        if decision.stop:
            raise _Leave(decision.stop)

    def _position(self) -> tuple[int, int]:
        """Epochs done, and steps of the next."""
        inside = self.trainer.inside
        return len(self.rows), 0 if inside is None else inside.step

    def _described_position(self) -> str:
        epochs, steps = self._position()
        more = f" and {steps} of {self.trainer.steps_per_epoch} steps" if steps else ""
        return f"{epochs} of {self.config.epochs} epochs{more}"

    def _validated(self, epoch: int) -> dict[str, float]:
        measurement = self.trainer.evaluate(self.subsets.val, hooks=self)
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
            with self._disk():
                save_trained(self.folder.next_best, self.trainer.weights(), self._described(row.epoch))

    def _rank(self, row: EpochRow) -> tuple[float, ...]:
        """The better epoch has the higher rank; of equals the earlier one stays."""
        return rank(row, self.task, self.config.select_by or self.task.headline)

    def save(self) -> None:
        """Write everything that `restore` and `load_trained` need, as one: the state counts, the others follow it."""
        self._save_state()
        if self.main:
            with self._disk():
                save_trained(self.folder.last, self.trainer.weights(), self._described(len(self.rows)))
                self.folder.write_metrics(self.rows, self.task)

    def _save_state(self) -> None:
        state = self.trainer.state_dict()
        if self.main:
            with self._disk():
                self.folder.commit(
                    {
                        "engine": state,
                        "rows": [row.flat() for row in self.rows],
                        "best_epoch": None if self.best is None else self.best.epoch,
                        "data": self.fingerprint,
                        "settings": deciding_settings(self.config),
                        "processes": self.trainer.accelerator.num_processes,
                    },
                    self.config.keep_last,
                )
        self.saved = self._position()
        self.watch.saved()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say of a disk that takes no more that nothing is lost but what came since the last save."""
        try:
            yield
        except OutputError as error:
            if not self.folder.states():
                raise
            raise OutputError(
                f"{error}. What was saved before is whole: make room, then go on with: {go_on(self.folder.path)}"
            ) from error

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
        epochs, steps = self.saved
        more = f" and {steps} steps" if steps else ""
        self.report.say(
            f"interrupted; {epochs} of {self.config.epochs} epochs{more} are saved. "
            f"Go on with: {go_on(self.folder.path)}"
        )
        self._draw_curves()

    def _draw_curves(self) -> None:
        if self.main and self.rows:
            title = f"{self.config.model} on {self.config.data.dataset}"
            best = None if self.best is None else self.best.epoch
            save_figure(curves_figure(self.rows, self.task, best, title), self.folder.curves)
