"""The trainer: model, moving average, optimizer, schedule and loaders, one epoch at a time, for any task."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from vmamba.errors import ConfigError
from vmamba.tasks.protocol import Measurement, Subsets, Task
from vmamba.train.accelerator import from_main
from vmamba.train.config import TrainConfig
from vmamba.train.finetune import freeze_stages, hold_still, init_file, load_init, train_head_only
from vmamba.train.gauges import Gauges, Readings
from vmamba.train.guard import FiniteGuard
from vmamba.train.optimizer import make_optimizer, make_scheduler
from vmamba.train.rng import restore_rng_state, rng_state, seed_everything
from vmamba.train.sampler import EpochSampler

#: Called after a step with (steps done, means of `Task.running` so far, samples per second).
StepReport = Callable[[int, Mapping[str, float], float], None]


@dataclass(frozen=True)
class TrainedEpoch:
    """What one pass over the training samples gave; ``figures`` are means over them of `Task.running`."""

    figures: Mapping[str, float]
    lr: float
    images_per_second: float
    readings: Readings


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

        self._sampler = EpochSampler(len(subsets.train), config.seed)
        loader = self._loader(task.dataset(subsets.train, config.augmentation), self._sampler)

        # Copied before accelerate wraps the model's forward.
        self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup) if config.ema_decay else None
        optimizer = make_optimizer(model, config)
        self.model, self.optimizer, self.train_loader = accelerator.prepare(model, optimizer, loader)
        if config.compile:
            accelerator.unwrap_model(self.model).compile()  # in place: no prefix on the weights' names
        self.steps_per_epoch = len(self.train_loader)
        self.updates_per_epoch = -(-self.steps_per_epoch // config.grad_accumulation)
        self.scheduler = make_scheduler(self.optimizer, config, self.updates_per_epoch)
        self.updates = 0
        self.objective = task.objective(config)
        task.check(self.measured_model.eval(), config.model)

    def _init_file(self, init: str) -> str:
        """The file of ``init``, fetched and verified by one process; another machine has a cache of its own."""
        path = from_main(self.accelerator, lambda: init_file(init))
        with self.accelerator.local_main_process_first():
            return str(path if path.exists() else init_file(init))

    def _loader(self, samples: Dataset[Any], sampler: Sampler[int] | None) -> DataLoader[Any]:
        workers = self.config.num_workers or 0
        return DataLoader(
            samples,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=self.task.collate,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_ignore_interrupts if workers else None,
            # Evaluation must not draw from the generators that training uses.
            generator=None if sampler is not None else torch.Generator().manual_seed(0),
        )

    @property
    def lr(self) -> float:
        """As of now; the head's, under layer decay."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def train_epoch(self, epoch: int, report: StepReport | None = None, every: int = 1) -> TrainedEpoch:
        """Train on every sample once.

        Args:
            epoch: counted from 0.
            report: called after each ``every``-th step; without it nothing waits for the device.
            every: steps.

        Raises:
            TrainingError: a loss or gradient is not finite; names the step.
        """
        config, accelerator = self.config, self.accelerator
        self._sampler.epoch = epoch
        self.model.train()
        if config.head_only_epochs:
            train_head_only(self.parts, epoch < config.head_only_epochs, config.freeze_stages)
        hold_still(self.parts, config.freeze_stages)
        sums = _RunningSums([metric.name for metric in self.task.running], accelerator.device)
        guard = FiniteGuard(epoch, every=1 if accelerator.device.type == "cpu" else 20)
        gauges = Gauges(accelerator)
        started = time.perf_counter()
        group = _UpdateGroup(config, self.steps_per_epoch)
        for step, loaded in enumerate(gauges.watched(self.train_loader)):
            batch = self.objective.prepare(loaded)
            update = group.ends(step)
            with nullcontext() if update else accelerator.no_sync(self.model):
                result = self.objective.loss(self.model, batch)
                guard.see(step, "loss", result.loss.detach())
                accelerator.backward(group.share(result.loss, result.count))
            if update:
                group.finish(self.model.parameters(), accelerator)
                norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad or float("inf"))
                gauges.norm(norm)
                if accelerator.scaler is None:  # a loss scaler deals with overflow itself
                    guard.see(step, "gradient norm", norm.detach())
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates += 1
                self.scheduler.step_update(self.updates)
                if self.ema is not None:
                    self.ema.update(accelerator.unwrap_model(self.model), self.updates)
            sums.add(result.loss.detach(), result.sums, result.count)
            if report is not None and (step + 1) % every == 0:
                figures, count = sums.means()
                report(step + 1, figures, count * accelerator.num_processes / (time.perf_counter() - started))
        guard.check()
        sums.values = accelerator.reduce(sums.values, "sum")
        figures, count = sums.means()
        seconds = time.perf_counter() - started
        return TrainedEpoch(figures, self.lr, count / seconds, gauges.read())

    def evaluate(self, samples: Any, model: nn.Module | None = None) -> Measurement:
        """Measure ``model`` (by default the weights that are saved) on every sample of a subset once."""
        accelerator = self.accelerator
        model = model or self.measured_model
        model.eval()
        meter = self.task.meter()
        with self._evaluation_loader(samples) as loader, torch.inference_mode(), accelerator.autocast():
            for batch in loader:
                seen = meter.observe(model(self.task.inputs(batch)), batch)
                # One object a sample, not tensors that can be laid end to end.
                meter.update(accelerator.gather_for_metrics(seen, use_gather_object=isinstance(seen, list)))
        return meter.measurement()

    @contextmanager
    def _evaluation_loader(self, samples: Any) -> Iterator[Any]:
        """A loader for one pass, of which nothing is left afterwards: no process, no entry in accelerate's lists."""
        known = self.accelerator._dataloaders  # else it keeps every loader, with its samples, until the run ends
        before = list(known)
        batches = None
        try:
            loader = self.accelerator.prepare_data_loader(self._loader(self.task.dataset(samples), None))
            batches = iter(loader)
            yield batches
        finally:
            if batches is not None:
                batches.close()  # ends its processes, also when the pass was broken off
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
        }

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


class _UpdateGroup:
    """The batches between two updates of the weights: the gradient is the mean over their samples.

    The last batch of an epoch ends a group however few there are, and each sample weighs the same in a group whose
    last batch is smaller.
    """

    def __init__(self, config: TrainConfig, steps: int) -> None:
        self.size = config.grad_accumulation
        self.full = self.size * (config.batch_size or 1)  # samples
        self.steps = steps
        self.seen = 0

    def ends(self, step: int) -> bool:
        """Whether the weights are updated after this step of the epoch, counted from 0."""
        return (step + 1) % self.size == 0 or step + 1 == self.steps

    def share(self, loss: Tensor, count: int) -> Tensor:
        """What a batch's mean loss adds to the mean over a full group. Scaling first keeps fp16 in its range."""
        self.seen += count
        return loss if count == self.full else loss * (count / self.full)

    def finish(self, parameters: Iterable[Tensor], accelerator: Any) -> None:
        """Turn the gradient into the mean over the samples that there were, and begin anew."""
        seen, self.seen = self.seen, 0
        if accelerator.num_processes > 1:  # whose gradients have been averaged
            counts = torch.tensor(float(seen), device=accelerator.device)
            seen = accelerator.reduce(counts, "mean").item()
        if seen not in (0, self.full):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= self.full / seen


class _RunningSums:
    """Sums over an epoch's samples, kept on the device: of the loss, of the other figures, and of ones."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.values = torch.zeros(len(names) + 1, device=device)

    def add(self, loss: Tensor, sums: Mapping[str, Tensor], count: int) -> None:
        """One batch: its mean loss, and the others' sums."""
        others = [sums[name].float() for name in self.names[1:]]
        self.values += torch.stack([loss.float() * count, *others, self.values.new_full((), count)])

    def means(self) -> tuple[dict[str, float], float]:
        """The means so far by name, and the number of samples; waits for the device."""
        *totals, count = self.values.tolist()
        return {name: total / max(count, 1.0) for name, total in zip(self.names, totals, strict=True)}, count


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process alone decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
