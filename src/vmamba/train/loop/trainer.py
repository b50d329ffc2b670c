"""The trainer: model, moving average, optimizer, schedule and loaders, one epoch at a time, for any task."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from vmamba.data.batches import batches_of
from vmamba.errors import ConfigError, TrainingError
from vmamba.tasks.protocol import Measurement, Subsets, Task
from vmamba.train.accelerator import from_main
from vmamba.train.loop.finetune import freeze_stages, hold_still, init_file, load_init, train_head_only
from vmamba.train.loop.gauges import Gauges, Readings
from vmamba.train.loop.guard import Fault, FiniteGuard
from vmamba.train.loop.optimizer import make_optimizer, make_scheduler
from vmamba.train.loop.rng import restore_rng_state, rng_state, seed_everything
from vmamba.train.loop.sampler import EpochSampler, SeededSamples
from vmamba.train.loop.update import RunningSums, UpdateGroup, Updater
from vmamba.train.settings.config import TrainConfig
from vmamba.train.signals import leave_signals_to_main


@dataclass(frozen=True)
class TrainedEpoch:
    """What one pass over the training samples gave; ``figures`` are means over them of `Task.running`."""

    figures: Mapping[str, float]
    lr: float
    images_per_second: float
    readings: Readings


@dataclass(frozen=True)
class Inside:
    """How far an epoch has been trained.

    Attributes:
        epoch: counted from 0.
        step: batches done, up to the epoch's number of them; never within a group of accumulated ones.
        seconds: that they took.
        sums: this process's `RunningSums`.
        norms: of the gradients, see `Gauges`.
    """

    epoch: int
    step: int
    seconds: float
    sums: Tensor
    norms: Tensor


class Hooks:
    """What the trainer tells a run while it trains; by default nothing comes of it but that fatal faults are raised."""

    def looked(self, step: int, figures: Mapping[str, float], speed: float) -> None:
        """After a look at the device: steps done, means of `Task.running` so far, samples per second."""

    def updated(self, step: int) -> None:
        """After an update, with the steps done; the trainer's state may be saved here, and left by an exception."""

    def faults(self, found: list[Fault]) -> None:
        """Updates that were left out because a value is not finite; the last may be fatal.

        Raises:
            TrainingError: it is.
        """
        if found[-1].fatal:
            raise TrainingError(str(found[-1]))

    def measured(self, batch: int) -> None:
        """After a batch of an evaluation, counted from 1; may be left by an exception."""


class Trainer:
    """Everything that changes while training, with one method for each thing that happens to it.

    Args:
        config: a resolved configuration.
        task: what is learnt.
        subsets: from what.
        accelerator: from `accelerator_for`.

    Raises:
        ConfigError: the model cannot be built, or cannot take such inputs.
    """

    def __init__(self, config: TrainConfig, task: Task, subsets: Subsets, accelerator: Any) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.config = config
        self.task = task
        self.accelerator = accelerator
        seed_everything(config.seed)  # the same weights in every process
        if config.head_only_epochs and accelerator.num_processes > 1:
            raise ConfigError("head_only_epochs needs a single process; leave it out or start one process")
        model = task.build(config)
        if config.init is not None and config.resume is None:  # a resumed run has its own weights
            load_init(model, self._init_file(config.init), task, config.reset_stages)
        self.parts = task.parts(model)
        freeze_stages(self.parts, config.freeze_stages)
        model = model.to(accelerator.device)
        seed_everything(config.seed, 1 + accelerator.process_index)

        #: The training samples by `vmamba.train.loop.sampler.Key`.
        self.samples = SeededSamples(task.dataset(subsets.train, config.augmentation), config.seed)
        taken = None
        if config.epoch_updates is not None:
            images = (config.batch_size or 1) * config.grad_accumulation * accelerator.num_processes
            taken = config.epoch_updates * images
        self._sampler = EpochSampler(len(self.samples), config.seed, taken)
        loader = self._loader(self.samples, self._sampler, persistent=True)

        # Copied before accelerate wraps the model's forward.
        self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup) if config.ema_decay else None
        optimizer = make_optimizer(model, config)
        self.model, self.optimizer, self.train_loader = accelerator.prepare(model, optimizer, loader)
        if config.compile:
            accelerator.unwrap_model(self.model).compile()  # in place: no prefix on the weights' names
        self.steps_per_epoch = len(self.train_loader)
        self.updates_per_epoch = -(-self.steps_per_epoch // config.grad_accumulation)
        self.scheduler = make_scheduler(self.optimizer, config, self.updates_per_epoch)
        self.updater = Updater(accelerator, self.optimizer, self.ema)
        self.updates = 0
        self.guard = FiniteGuard(config.skip_nonfinite, accelerator)
        self.inside: Inside | None = None
        self.objective = task.objective(config)
        task.check(self.measured_model.eval(), config.model)

    def _init_file(self, init: str) -> str:
        """The file of ``init``, fetched and verified by one process; another machine has a cache of its own."""
        path = from_main(self.accelerator, lambda: init_file(init))
        with self.accelerator.local_main_process_first():
            return str(path if path.exists() else init_file(init))

    def _loader(self, samples: Dataset[Any], sampler: Sampler[Any] | None, persistent: bool = False) -> DataLoader[Any]:
        workers = self.config.num_workers or 0
        return DataLoader(
            samples,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            collate_fn=self.task.collate,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=leave_signals_to_main if workers else None,
            # A loader must not draw from the generators that training uses; samples bring seeds of their own.
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def lr(self) -> float:
        """As of now; the head's, under layer decay."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def train_epoch(self, epoch: int, hooks: Hooks | None = None) -> TrainedEpoch:
        """Train on every sample once, or on those that are left where `load_state_dict` went into this epoch.

        Afterwards `inside` stands at the epoch's end, until `close_epoch`.

        Args:
            epoch: counted from 0.
            hooks: what is told on the way.

        Raises:
            TrainingError: a loss or gradient is not finite; names the step.
        """
        config, accelerator, hooks = self.config, self.accelerator, hooks or Hooks()
        start = self.begin_epoch(epoch)
        sums = RunningSums([metric.name for metric in self.task.running], accelerator.device)
        sums.values += start.sums
        began, unseen = time.perf_counter() - start.seconds, 0
        gauges = Gauges(accelerator, start.norms)
        group = UpdateGroup(config, self.steps_per_epoch)
        plain = accelerator.unwrap_model(self.model)
        for step, loaded in enumerate(gauges.watched(self._batches_from(start.step)), start.step):
            if group.begins(step):
                self.guard.begin(plain)
            update = group.ends(step)
            self.learn(step, loaded, group, sums)
            unseen += 1
            if not update:
                continue
            group.finish(self.model, accelerator)
            norm = self.updater.clip(self.model, config.clip_grad or 0.0)
            gauges.norm(norm)
            if accelerator.scaler is None:  # a loss scaler deals with overflow itself
                self.guard.see(step, "gradient norm", norm)
            self.updates += 1
            self.updater.update(plain, self.updates, self.guard.judge())
            self.scheduler.step_update(self.updates)
            self.inside = Inside(epoch, step + 1, time.perf_counter() - began, sums.values, gauges.norms)
            if unseen >= self.look_every or step + 1 == self.steps_per_epoch:
                unseen = 0
                self.look(hooks)
                figures, count = sums.means()
                hooks.looked(step + 1, figures, count * accelerator.num_processes / self.inside.seconds)
            hooks.updated(step + 1)
        figures, count = sums.means(accelerator.reduce(sums.values.clone(), "sum"))
        seconds = self.inside.seconds if self.inside is not None else 0.0
        return TrainedEpoch(figures, self.lr, count / max(seconds, 1e-9), gauges.read())

    def learn(self, step: int, loaded: Any, group: UpdateGroup, sums: RunningSums | None = None) -> Tensor:
        """Forward and backward pass of one batch; returns its loss."""
        batch = self.objective.prepare(loaded)
        with nullcontext() if group.ends(step) else self.accelerator.no_sync(self.model):
            result = self.objective.loss(self.model, batch)
            loss = result.loss.detach()
            self.guard.see(step, "loss", loss)
            self.accelerator.backward(group.share(result.loss, result.count))
        if sums is not None:
            sums.add(loss, result.sums, result.count)
        return loss

    def begin_epoch(self, epoch: int) -> Inside:
        """Set everything up for an epoch; returns where in it to start."""
        config = self.config
        self._sampler.epoch = epoch
        self.model.train()
        if config.head_only_epochs:
            train_head_only(self.parts, epoch < config.head_only_epochs, config.freeze_stages)
        hold_still(self.parts, config.freeze_stages)
        if self.inside is None or self.inside.epoch != epoch:
            zero = torch.zeros(len(self.task.running) + 1, device=self.accelerator.device)
            self.inside = Inside(epoch, 0, 0.0, zero, zero.new_zeros(2))
        return self.inside

    def _batches_from(self, step: int) -> Iterator[Any]:
        """This epoch's batches without the first ``step``, which are not loaded."""
        from accelerate import skip_first_batches

        if step == 0:
            return batches_of(self.train_loader)
        if step >= self.steps_per_epoch:
            return iter(())
        rest = skip_first_batches(self.train_loader, step)
        if hasattr(self.train_loader, "_non_blocking"):  # which accelerate forgets
            rest._non_blocking = self.train_loader._non_blocking
        return batches_of(rest)

    @property
    def look_every(self) -> int:
        """Steps between two looks at the device: one where it is not waited for, or is waited for in any case."""
        waits = self.accelerator.device.type != "cpu" and self.accelerator.scaler is None
        return self.config.log_every if waits else 1

    def look(self, hooks: Hooks) -> None:
        """Tell ``hooks`` which updates since the last look had something that is not finite; waits for the device."""
        faults = self.guard.look(self._sampler.epoch)
        if faults:
            hooks.faults(faults)

    def close_epoch(self) -> None:
        """The epoch that was trained is done with, its measurement too."""
        self.inside = None

    def keys_of(self, epoch: int, first: int, last: int) -> list[list[int]]:
        """The samples' indices in this process's batches ``first`` to ``last`` of an epoch, all counted from 0."""
        self._sampler.epoch = epoch
        return [[index for _, index in keys] for keys in islice(self.train_loader.batch_sampler, first, last + 1)]

    def evaluate(self, samples: Any, model: nn.Module | None = None, hooks: Hooks | None = None) -> Measurement:
        """Measure ``model`` (by default the weights that are saved) on every sample of a subset once."""
        accelerator = self.accelerator
        model = model or self.measured_model
        model.eval()
        meter = self.task.meter()
        with self._evaluation_loader(samples) as loader, torch.inference_mode(), accelerator.autocast():
            for number, batch in enumerate(loader, 1):
                seen = meter.observe(self.task.run(model, self.task.inputs(batch)), batch)
                # One object a sample, not tensors that can be laid end to end.
                meter.update(accelerator.gather_for_metrics(seen, use_gather_object=isinstance(seen, list)))
                if hooks is not None:
                    hooks.measured(number)
        return meter.measurement()

    @contextmanager
    def _evaluation_loader(self, samples: Any) -> Iterator[Any]:
        """A loader for one pass, of which nothing is left afterwards: no process, no entry in accelerate's lists."""
        known = self.accelerator._dataloaders  # else it keeps every loader, with its samples, until the run ends
        before = list(known)
        try:
            loader = self.accelerator.prepare_data_loader(self._loader(self.task.dataset(samples), None))
            with closing(batches_of(loader)) as batches:  # ends its processes, also when the pass was broken off
                yield batches
        finally:
            known[:] = before

    @property
    def measured_model(self) -> nn.Module:
        """The moving average where there is one, else the model itself."""
        model: nn.Module = self.ema.module if self.ema is not None else self.accelerator.unwrap_model(self.model)
        return model

    def weights(self) -> dict[str, Tensor]:
        """The weights that are measured and saved, on their device."""
        return dict(self.measured_model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on. Call it in every process: generators' states are gathered."""
        from accelerate.utils import gather_object

        scaler = self.accelerator.scaler
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            # The schedule is a function of the number of updates, and the order of samples one of the epoch.
            "updates": self.updates,
            "rng": gather_object([rng_state()]),
            "inside": self._gathered_inside(),
            "left_out": self.guard.left_out,
        }

    def _gathered_inside(self) -> dict[str, Any] | None:
        from accelerate.utils import gather_object

        inside = self.inside
        if inside is None:
            return None
        sums = gather_object([inside.sums.tolist()])
        norms = inside.norms.tolist()  # the same in every process
        return {"epoch": inside.epoch, "step": inside.step, "seconds": inside.seconds, "sums": sums, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned, generators included."""
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
        self.scheduler.step_update(self.updates)
        restore_rng_state(state["rng"][self.accelerator.process_index])
        self.guard = FiniteGuard(self.config.skip_nonfinite, self.accelerator, state.get("left_out", 0))
        self.inside = None
        if state.get("inside") is not None:  # older versions saved between epochs only
            inside = dict(state["inside"])
            mine = inside.pop("sums")[self.accelerator.process_index]
            sums, norms = (torch.tensor(t, device=self.accelerator.device) for t in (mine, inside.pop("norms")))
            self.inside = Inside(**inside, sums=sums, norms=norms)
