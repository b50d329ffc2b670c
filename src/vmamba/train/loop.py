"""The machine that trains: model, moving average, optimizer, schedule and loaders, one epoch at a time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from vmamba.data import LabelledImages, Splits, TransformedImages
from vmamba.errors import ConfigError, TrainingError
from vmamba.models import VSSM, create_model
from vmamba.tasks.classification.scores import ScoreCounter, Scores
from vmamba.train.config import TrainConfig
from vmamba.train.finetune import freeze_stages, hold_still, load_init, train_head_only
from vmamba.train.rng import restore_rng_state, rng_state, seed_everything

#: Called after a step with (steps done, mean loss so far, accuracy so far, images per second).
StepReport = Callable[[int, float, float, float], None]


class EpochSampler(Sampler[int]):
    """A permutation that depends on the seed and the epoch only, so that a resumed run sees the same order.

    ``epoch`` is set from outside. There is no ``set_epoch``: accelerate's loaders would call it with their own count,
    which starts at 0 in every process.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        word = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order: list[int] = torch.randperm(self.length, generator=torch.Generator().manual_seed(word)).tolist()
        return iter(order)

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class TrainedEpoch:
    """What one pass over the training images gave; the means are over images."""

    loss: float
    accuracy: float
    lr: float
    images_per_second: float


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

    wanted = config.device
    if wanted not in ("auto", "cpu") and not getattr(torch, wanted).is_available():
        raise ConfigError(f"device={wanted!r}: torch {torch.__version__} finds no such device here; use auto or cpu")
    try:
        accelerator = Accelerator(
            cpu=wanted == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accumulation,
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


class Engine:
    """Everything that changes while training, with one method for each thing that happens to it.

    Args:
        config: a resolved configuration.
        splits: its images.
        accelerator: from `accelerator_for`.

    Raises:
        ConfigError: the model cannot be built, or cannot take images of this size.
    """

    def __init__(self, config: TrainConfig, splits: Splits, accelerator: Any) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.config = config
        self.accelerator = accelerator
        self.classes = splits.classes
        seed_everything(config.seed)  # the same weights in every process
        if config.head_only_epochs and accelerator.num_processes > 1:
            raise ConfigError("head_only_epochs needs a single process; leave it out or start one process")
        model = build_model(config, splits)
        if config.init is not None and config.resume is None:  # a resumed run has its own weights
            load_init(model, config.init, splits.classes, config.reset_stages)
        freeze_stages(model, config.freeze_stages)
        model = model.to(accelerator.device)
        self.model_config = model.config
        seed_everything(config.seed, 1 + accelerator.process_index)

        augment = splits.preprocessing.train_transform(config.augmentation)
        self._eval_transform = splits.preprocessing.eval_transform()
        self._sampler = EpochSampler(len(splits.train), config.seed)
        loader = self._loader(splits.train, augment, self._sampler)

        # Copied before accelerate wraps the model's forward.
        self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        optimizer = make_optimizer(model, config)
        self.model, self.optimizer, self.train_loader = accelerator.prepare(model, optimizer, loader)
        self.steps_per_epoch = len(self.train_loader)
        self.updates_per_epoch = -(-self.steps_per_epoch // config.grad_accumulation)
        self.scheduler = make_scheduler(self.optimizer, config, self.updates_per_epoch)
        self.updates = 0

        self.mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        smoothing = config.label_smoothing or 0.0
        if config.mixup or config.cutmix:
            from timm.data.mixup import Mixup

            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=config.mixup or 0.0,
                cutmix_alpha=config.cutmix or 0.0,
                label_smoothing=smoothing,
                num_classes=len(self.classes),
            )
            smoothing = 0.0  # already in the mixed targets
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def _loader(self, images: LabelledImages, transform: Any, sampler: Sampler[int] | None) -> DataLoader[Any]:
        workers = self.config.num_workers or 0
        return DataLoader(
            TransformedImages(images, transform),
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_ignore_interrupts if workers else None,
            # Evaluation must not draw from the generators that training uses.
            generator=None if sampler is not None else torch.Generator().manual_seed(0),
        )

    def train_epoch(self, epoch: int, report: StepReport | None = None) -> TrainedEpoch:
        """Train on every image once.

        Args:
            epoch: counted from 0.
            report: called after each step; without it nothing waits for the device.

        Raises:
            TrainingError: a loss or gradient is not finite; names the step.
        """
        config, accelerator = self.config, self.accelerator
        self._sampler.epoch = epoch
        self.model.train()
        plain = accelerator.unwrap_model(self.model)
        if config.head_only_epochs:
            train_head_only(plain, epoch < config.head_only_epochs, config.freeze_stages)
        hold_still(plain, config.freeze_stages)
        sums = torch.zeros(3, device=accelerator.device)  # loss, right, images
        guard = _FiniteGuard(epoch, every=1 if accelerator.device.type == "cpu" else 20)
        started = time.perf_counter()
        for step, (images, targets) in enumerate(self.train_loader):
            mixed = targets
            if self.mixup is not None:
                if len(images) % 2:  # timm mixes pairs
                    images, targets = images[1:], targets[1:]
                if len(images) == 0:
                    continue
                images, mixed = self.mixup(images, targets)
            with accelerator.accumulate(self.model):
                logits = self.model(images)
                loss = self.criterion(logits, mixed)
                guard.see(step, "loss", loss.detach())
                accelerator.backward(loss * self._group_scale(step))
                if accelerator.sync_gradients and config.clip_grad:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad)
                    if accelerator.scaler is None:  # a loss scaler deals with overflow itself
                        guard.see(step, "gradient norm", norm.detach())
                self.optimizer.step()
                self.optimizer.zero_grad()
            if accelerator.sync_gradients:
                self.updates += 1
                self.scheduler.step_update(self.updates)
                if self.ema is not None:
                    self.ema.update(accelerator.unwrap_model(self.model), self.updates)
            with torch.no_grad():
                right = (logits.argmax(1) == targets).sum()
                sums += torch.stack(
                    [loss.detach().float() * len(targets), right.float(), right.new_tensor(len(targets))]
                )
            if report is not None:
                done = sums.tolist()
                speed = done[2] * accelerator.num_processes / (time.perf_counter() - started)
                report(step + 1, done[0] / done[2], done[1] / done[2], speed)
        guard.check()
        total = accelerator.reduce(sums, "sum").tolist()
        seconds = time.perf_counter() - started
        lr = max(group["lr"] for group in self.optimizer.param_groups)  # the head's, under layer decay
        images_seen = max(total[2], 1.0)
        return TrainedEpoch(total[0] / images_seen, total[1] / images_seen, lr, total[2] / seconds)

    def _group_scale(self, step: int) -> float:
        """Accelerate divides each loss by the size of a full group; the epoch's last group may be smaller."""
        size = self.config.grad_accumulation
        first = step - step % size
        return size / min(size, self.steps_per_epoch - first)

    def evaluate(self, images: LabelledImages, model: nn.Module | None = None) -> Scores:
        """Measure ``model`` (by default the weights that are saved) on every image once."""
        accelerator = self.accelerator
        model = model or self.measured_model
        model.eval()
        loader = accelerator.prepare_data_loader(self._loader(images, self._eval_transform, None))
        counter = ScoreCounter(self.classes)
        with torch.inference_mode(), accelerator.autocast():
            for batch, targets in loader:
                logits, labels = accelerator.gather_for_metrics((model(batch), targets))
                counter.update(logits, labels)
        return counter.scores()

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
            # The schedule is a function of the number of updates, and the order of images one of the epoch.
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


def build_model(config: TrainConfig, splits: Splits) -> VSSM:
    """The model of a resolved configuration, with fresh weights."""
    return create_model(
        config.model,
        num_classes=len(splits.classes),
        in_chans=splits.preprocessing.in_chans,
        imgsize=splits.preprocessing.height,
        drop_path_rate=config.drop_path_rate,
        selective_scan_backend=config.selective_scan_backend,
        **config.model_options,
    )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW by timm's factory, which leaves vectors and the model's ``no_weight_decay`` parameters undecayed."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    return create_optimizer_v2(
        model,
        opt="adamw",
        lr=config.lr,
        weight_decay=config.weight_decay or 0.0,
        layer_decay=None if config.layer_decay == 1.0 else config.layer_decay,
    )


def make_scheduler(optimizer: Any, config: TrainConfig, updates_per_epoch: int) -> Any:
    """Linear warm-up, then a cosine down to ``min_lr``, stepped at every update."""
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    epochs, warmup = config.epochs or 1, config.warmup_epochs or 0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs - warmup,
        min_lr=config.min_lr,
        warmup_lr=(config.lr or 0.0) / 100,
        warmup_epochs=warmup,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler


class _FiniteGuard:
    """Stops training at the first loss or norm that is not finite; looks at every ``every``-th, since looking waits."""

    def __init__(self, epoch: int, every: int) -> None:
        self.epoch = epoch
        self.every = every
        self.seen: list[tuple[int, str, Tensor]] = []

    def see(self, step: int, name: str, value: Tensor) -> None:
        self.seen.append((step, name, value))
        if len(self.seen) >= self.every:
            self.check()

    def check(self) -> None:
        seen, self.seen = self.seen, []
        if not seen:
            return
        finite = torch.isfinite(torch.stack([value.float().reshape(()) for _, _, value in seen])).tolist()
        if not all(finite):
            step, name, value = seen[finite.index(False)]
            raise TrainingError(
                f"the {name} is {value.item()} at step {step + 1} of epoch {self.epoch + 1}. The weights of the last "
                "whole epoch are kept. Start again with a lower lr or a longer warm-up, or with mixed_precision=no if "
                "it is on"
            )


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process alone decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
