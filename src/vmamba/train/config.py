"""A training run's configuration as one typed value: what may be asked for, what is filled in, what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from vmamba.data import Augmentation, DataConfig
from vmamba.errors import ConfigError
from vmamba.given import remembers_given
from vmamba.tasks.protocol import Task
from vmamba.tasks.registry import DEFAULT, task_type
from vmamba.train.recipe import Recipe, recipe_for


@remembers_given
@dataclass(frozen=True)
class TrainConfig:
    """How to train; where nothing is given, what suits the data set.

    Attributes:
        model: A model's name, as listed by `vmamba models`.
        model_options: Other fields of the model's configuration, such as {patchembed_version: v1, patch_size: 2}, which
            keeps maps twice as large, for small images.
        data: The images.
        augmentation: Random changes to the training images.
        init: Weights to start from: a model's name (its released weights), a run folder or a weight file. Strict for
            all but the head, which stays fresh for other classes; input channels and image size are adapted.
        reset_stages: Stages, from the head on, that ``init`` leaves fresh, for images unlike those its weights have
            seen; 0 = none.
        freeze_stages: Stages, from the image on, that keep their weights, and with the first the patch embedding.
        layer_decay: Factor on the learning rate of each layer against the next deeper one; 1 = the same for all.
        head_only_epochs: Epochs at the start in which nothing but the head learns.
        epochs: Passes over the training images.
        batch_size: Images in one forward pass of one process.
        grad_accumulation: Forward passes before each update of the weights.
        lr: Learning rate after warm-up; it then falls along a cosine.
        min_lr: Learning rate at the end.
        warmup_epochs: Epochs in which the learning rate rises linearly.
        weight_decay: AdamW's, on matrices only.
        label_smoothing: Share of the target that is spread over all classes.
        clip_grad: Largest norm of the gradient; 0 = no clipping.
        ema_decay: Decay of the moving average of the weights, which is what is measured and saved; 0 = none.
        mixup: Mixup's alpha; 0 = off.
        cutmix: CutMix's alpha; 0 = off.
        drop_path_rate: Stochastic depth.
        seed: Of weights, order and augmentation; the split has its own, data.seed.
        device: auto, cpu, cuda, mps or xpu.
        mixed_precision: bf16 or fp16 (GPU only) for the matrix products; no = float32.
        num_workers: Processes that load images; 0 = none.
        select_by: What makes an epoch the best on the validation images, for classification the highest accuracy or the
            lowest loss.
        save_every: Epochs between two saves of the training state and of the weights.
        selective_scan_backend: The scan's implementation; the fastest that runs by default.
        output: Folder of the run; by default a new one under runs/.
        resume: Folder of a run to go on with. Fields left out are that run's; epochs may be changed, and with it the
            rest of the learning-rate curve.
        task: What is learnt: classification (one class an image) or multilabel (any number).
        task_options: Options that the task alone has: of classification and multilabel class_weights, which is none,
            balanced, {class: weight} or a CSV file with the columns class and weight.
    """

    given: InitVar[frozenset[str] | None] = field(default=None, kw_only=True)
    model: str = "vmamba_nano"
    model_options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    init: str | None = None
    reset_stages: int = 0
    freeze_stages: int = 0
    layer_decay: float = 1.0
    head_only_epochs: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    grad_accumulation: int = 1
    lr: float | None = None
    min_lr: float = 1e-6
    warmup_epochs: int | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    clip_grad: float | None = None
    ema_decay: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    drop_path_rate: float | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_workers: int | None = None
    select_by: str | None = None
    save_every: int = 1
    selective_scan_backend: str | None = None
    output: Path | None = None
    resume: Path | None = None
    task: str = DEFAULT
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, given: frozenset[str] | None) -> None:
        for name in ("epochs", "batch_size", "grad_accumulation", "save_every"):
            self._want(name, "a whole number, 1 or more", lambda v: v >= 1)
        for name in ("warmup_epochs", "num_workers", "seed", "reset_stages", "freeze_stages", "head_only_epochs"):
            self._want(name, "a whole number, 0 or more", lambda v: v >= 0)
        self._want("lr", "a number above 0", lambda v: 0 < v < float("inf"))
        for name in ("min_lr", "weight_decay", "clip_grad", "mixup", "cutmix"):
            self._want(name, "a number, 0 or more", lambda v: 0 <= v < float("inf"))
        for name in ("label_smoothing", "ema_decay", "drop_path_rate"):
            self._want(name, "a number from 0 up to, not including, 1", lambda v: 0 <= v < 1)
        self._want("layer_decay", "a number above 0, up to 1", lambda v: 0 < v <= 1)
        figures = [metric.name for metric in self.learnt.metrics]
        self._want("select_by", " or ".join(sorted(figures)), lambda v: v in figures)
        self._want("device", "auto, cpu, cuda, mps or xpu", lambda v: v in ("auto", "cpu", "cuda", "mps", "xpu"))
        self._want("mixed_precision", "no, bf16 or fp16", lambda v: v in ("no", "bf16", "fp16"))
        if self.epochs is not None and self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs={self.warmup_epochs} must be fewer than epochs={self.epochs}")
        if self.reset_stages and self.init is None:
            raise ConfigError(f"reset_stages={self.reset_stages} needs init: without it every stage is fresh")
        if self.lr is not None and self.min_lr > self.lr:
            raise ConfigError(f"min_lr={self.min_lr} is above lr={self.lr}")
        for name in ("num_classes", "in_chans", "imgsize", "drop_path_rate", "selective_scan_backend"):
            if name in self.model_options:
                where = {"num_classes": "comes from the data", "in_chans": "is data.in_chans"}
                where |= {"imgsize": "is data.image_size"}
                raise ConfigError(f"model_options may not set {name}: it {where.get(name, 'is a field of its own')}")

    def _want(self, name: str, legal: str, test: Any) -> None:
        value = getattr(self, name)
        if value is not None and not test(value):
            raise ConfigError(f"{name}={value!r}: want {legal}")

    @property
    def learnt(self) -> type[Task]:
        """The kind of task."""
        return task_type(self.task)

    @property
    def recipe(self) -> Recipe:
        """What suits the data set. Where its choice of an epoch is by another task's figure, the headline chooses."""
        recipe = recipe_for(self.data.dataset)
        known = recipe.select_by in [metric.name for metric in self.learnt.metrics]
        return recipe if known else replace(recipe, select_by=self.learnt.headline)

    def resolved(self) -> TrainConfig:
        """This configuration with every field that has a default of its data set filled in.

        Raises:
            ConfigError: fields that contradict each other once filled in.
        """
        row = self.data.defaults
        filled: dict[str, Any] = {
            f.name: getattr(self.recipe, f.name) for f in fields(Recipe) if getattr(self, f.name) is None
        }
        if self.warmup_epochs is None:
            # A short run keeps three quarters of its epochs for the cosine.
            filled["warmup_epochs"] = min(self.recipe.warmup_epochs, (self.epochs or self.recipe.epochs) // 4)
        if self.num_workers is None:
            filled["num_workers"] = min(self.recipe.num_workers, _cores())  # more would wait for each other
        data = replace(
            self.data,
            image_size=row.image_size if self.data.image_size is None else self.data.image_size,
            in_chans=row.in_chans if self.data.in_chans is None else self.data.in_chans,
        )
        return replace(self, data=data, augmentation=self.augmentation.resolved(row.augmentation), **filled)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in ``config.yaml``: a file that builds the same configuration again."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
