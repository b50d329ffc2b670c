"""Train a classifier: from a configuration to a folder with weights, measurements and pictures."""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vmamba.data import Splits, load_splits
from vmamba.errors import CheckpointError, ConfigError, InputError, TrainingError
from vmamba.evaluate.pictures import confusion_figure, curves_figure, save_figure
from vmamba.models import model_config
from vmamba.output import check_writable_folder, create_folder
from vmamba.tasks.classification.scores import Scores
from vmamba.train.config import TrainConfig
from vmamba.train.loop import Engine, accelerator_for
from vmamba.train.report import Reporter
from vmamba.train.resume import check_epochs, check_same_data, check_same_settings, deciding_settings, resumed_config
from vmamba.train.run_folder import EpochRow, RunFolder, load_trained, new_run_folder, save_trained, weight_metadata
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
        best_val_accuracy: their accuracy on the validation images, 0 to 1.
        test: their scores on the test images; None where the data set has no test images.
        seconds: time this call took.
    """

    run_folder: Path
    epochs: int
    best_epoch: int
    best_val_accuracy: float
    test: Scores | None
    seconds: float

    @property
    def test_accuracy(self) -> float | None:
        """Share of the test images that the best weights get right."""
        return None if self.test is None else self.test.top1


def train(config: TrainConfig, console: Console | None = None) -> TrainResult:
    """Train as ``config`` says. Nothing is written before configuration, data and model have been checked.

    The epoch with the best validation accuracy or loss (``select_by``; the other one decides between equals) is kept
    as ``best.safetensors``; only its weights are measured on the test images, once, at the end. After every
    ``save_every`` epochs the folder holds all that ``resume`` needs to go on to the same result, bit for bit on the
    same machine with the same number of workers and threads; an interrupt in between costs the epochs since.

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
        model_config(config.model, **config.model_options)  # before the data, which take longer
        splits = load_splits(config.data)
        engine = Engine(config, splits, accelerator)
        _check_image_size(engine, splits)
        run = _Run(
            config,
            splits,
            engine,
            RunFolder(path),
            Reporter(console if accelerator.is_main_process else None, config.epochs or 1, engine.steps_per_epoch),
        )
        with run.report:
            try:
                if resuming:
                    run.restore()
                else:
                    run.begin()
                run.train()
                test = run.finish()
            except KeyboardInterrupt:
                run.interrupted()
                raise
        best = run.best
        assert best is not None
        return TrainResult(path, len(run.rows), best.epoch, best.val_accuracy, test, time.monotonic() - started)


def _common_path(accelerator: Any, config: TrainConfig) -> Path:
    from accelerate.utils import broadcast_object_list

    if config.resume is not None:
        check_writable_folder(config.resume)
        return config.resume
    shared = [new_run_folder(config) if accelerator.is_main_process else None]
    path: Path = broadcast_object_list(shared)[0]
    return path


def _check_image_size(engine: Engine, splits: Splits) -> None:
    """Show the model one black image: it knows best which sizes it can take."""
    p = splits.preprocessing
    model = engine.measured_model.eval()
    image = torch.zeros(1, p.in_chans, p.height, p.width, device=engine.accelerator.device)
    try:
        with torch.no_grad():
            model(image)
    except InputError as error:
        raise ConfigError(f"image_size={p.image_size} does not suit model {engine.config.model!r}: {error}") from error


class _Run:
    """One run: the engine, its folder and what has been measured so far."""

    def __init__(
        self, config: TrainConfig, splits: Splits, engine: Engine, folder: RunFolder, report: Reporter
    ) -> None:
        self.config = config
        self.splits = splits
        self.engine = engine
        self.folder = folder
        self.report = report
        self.main = bool(engine.accelerator.is_main_process)
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None
        self.saved = 0  # epochs that the files on disk stand for
        self.fingerprint = splits.fingerprint()  # once: it looks at every file
        self.metadata = weight_metadata(config.model, engine.model_config, splits.classes, splits.preprocessing)

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
            processes = self.engine.accelerator.num_processes
            if state["processes"] != processes:
                raise ConfigError(
                    f"{self.folder.path} was trained by {state['processes']} process(es), this is {processes}; "
                    "start as many as then"
                )
            self.rows = [EpochRow(**row) for row in state["rows"]]
            check_epochs(self.config, len(self.rows), self.folder.path)
            self.best = next((row for row in self.rows if row.epoch == state["best_epoch"]), None)
            self.engine.load_state_dict(state["engine"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder.state} does not fit this run ({error}); was it changed?") from error
        self.saved = len(self.rows)
        if self.best is not None:
            if not self.folder.best.is_file():
                raise CheckpointError(f"{self.folder.best} is missing; without it the run cannot be resumed")
            if read_weights(self.folder.best).metadata.get("epoch") != str(self.best.epoch):
                # Stopped after a better epoch but before its state was saved. That epoch comes again, and wins again;
                # until then the file must hold an epoch that this run knows.
                self._keep(self.rows[-1])
        if self.main:
            self.folder.write_config(replace(self.config, output=self.folder.path, resume=None))
        self._introduce(f"resumed after {len(self.rows)} of {self.config.epochs} epochs")

    def _introduce(self, how: str) -> None:
        engine, splits = self.engine, self.splits
        count = sum(p.numel() for p in engine.measured_model.parameters())
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
        self.report.say(f"{how}: {self.folder.path}")
        precision = "float32" if self.config.mixed_precision == "no" else self.config.mixed_precision
        self.report.say(
            f"{self.config.model} ({count / 1e6:.2f} M parameters) on {self.config.data.dataset}: {sizes} images, "
            f"{len(splits.classes)} classes, {splits.preprocessing.height}×{splits.preprocessing.width}, "
            f"{engine.accelerator.device}, {precision}"
        )
        if splits.skipped:
            self.report.say(f"left out {len(splits.skipped)} unreadable image(s), the first: {splits.skipped[0]}")

    def train(self) -> None:
        """Train the epochs that are still to do."""
        drawn = time.monotonic()
        for epoch in range(len(self.rows), self.config.epochs or 1):
            started = time.monotonic()
            self.report.start_epoch(epoch)

            def step(done: int, loss: float, accuracy: float, speed: float, epoch: int = epoch) -> None:
                self.report.step(epoch, done, loss, accuracy, speed)

            trained = self.engine.train_epoch(epoch, step if self.report.live else None)
            val = self.engine.evaluate(self.splits.val)
            if not math.isfinite(val.loss):
                raise TrainingError(
                    f"the validation loss is {val.loss} after epoch {epoch + 1}. The weights of the epoch before are "
                    "kept. Start again with a lower lr or a longer warm-up"
                )
            row = EpochRow(
                epoch=epoch + 1,
                train_loss=trained.loss,
                train_accuracy=trained.accuracy,
                val_loss=val.loss,
                val_accuracy=val.top1,
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
            if time.monotonic() - drawn > DRAW_EVERY:
                self._draw_curves()
                drawn = time.monotonic()

    def _keep(self, row: EpochRow) -> None:
        """Make the weights as they are now, measured in ``row``, the best."""
        self.best = row
        if self.main:
            save_trained(self.folder.best, self.engine.weights(), {**self.metadata, "epoch": str(row.epoch)})

    def _rank(self, row: EpochRow) -> tuple[float, float]:
        """The better epoch has the higher rank; of equals the earlier one stays."""
        if self.config.select_by == "loss":
            return -row.val_loss, row.val_accuracy
        return row.val_accuracy, -row.val_loss

    def save(self) -> None:
        """Write everything that `restore` and `load_trained` need; the state last, since it speaks for the others."""
        engine = self.engine.state_dict()
        if self.main:
            epoch = {"epoch": str(len(self.rows))}
            save_trained(self.folder.last, self.engine.weights(), {**self.metadata, **epoch})
            self.folder.write_metrics(self.rows)
            self.folder.write_state(
                {
                    "engine": engine,
                    "rows": [asdict(row) for row in self.rows],
                    "best_epoch": None if self.best is None else self.best.epoch,
                    "data": self.fingerprint,
                    "settings": deciding_settings(self.config),
                    "processes": self.engine.accelerator.num_processes,
                }
            )
        self.saved = len(self.rows)

    def finish(self) -> Scores | None:
        """Measure the best weights on the test images (the validation images where there are none), and draw."""
        self.engine.accelerator.wait_for_everyone()
        best = load_trained(self.folder.best).model.to(self.engine.accelerator.device)
        test = None if self.splits.test is None else self.engine.evaluate(self.splits.test, best)
        shown = test if test is not None else self.engine.evaluate(self.splits.val, best)
        if self.main:
            self._draw_curves()
            name = "Test" if test is not None else "Validation"
            save_figure(confusion_figure(shown.confusion, self.splits.classes, name), self.folder.confusion)
        assert self.best is not None
        said = f"best epoch {self.best.epoch}: validation accuracy {self.best.val_accuracy:.2%}"
        if test is not None:
            said += f", test accuracy {test.top1:.2%} ({test.images:,} images)"
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
            save_figure(curves_figure(self.rows, best, title), self.folder.curves)
