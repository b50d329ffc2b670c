"""A training run's configuration as one typed value: what may be asked for, what is filled in, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vmamba.data import Augmentation, DataConfig
from vmamba.errors import ConfigError
from vmamba.given import remembers_given
from vmamba.tasks.protocol import Task
from vmamba.tasks.registry import DEFAULT, task_type
from vmamba.train.settings.filling import per_1024, rates, with_defaults, with_recipe
from vmamba.train.settings.recipe import Recipe, recipe_for

#: What ``resume`` says to go on with the run in ``output`` if there is one; a folder of that name is ``./auto``.
AUTO = Path("auto")


@remembers_given
@dataclass(frozen=True)
class TrainConfig:
    """How to train; where nothing is given, what the recipe or the data set says.

    Attributes:
        recipe: Values to start from: a recipe of this package, such as vmamba_tiny_s1l8, or a YAML file of these
            options. What is given beside it wins.
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
        epoch_updates: Updates of the weights that make an epoch, whatever the number of images; by default as many as
            one pass takes.
        optimizer: adamw, or muon, which updates matrices by orthogonal ones and all else as AdamW does: it learns more
            from each image, at some more arithmetic an update; lr and weight_decay hold for both. By default adamw; for
            fashion-mnist, where no recipe is named, muon.
        lr: Learning rate after warm-up; it then falls as schedule says.
        lr_per_1024: The same for an update of 1024 images: it is multiplied by batch_size × grad_accumulation ×
            processes / 1024. Where lr is given, that holds.
        min_lr: Learning rate at the end; by default 1e-6.
        min_lr_per_1024: The same for an update of 1024 images.
        schedule: How the learning rate falls: cosine; poly, by a power of what is left of the updates; or steps,
            to a tenth after each of drop_epochs.
        poly_power: That power; 1 is a straight line.
        drop_epochs: Epochs after which it drops to a tenth, for schedule=steps.
        warmup_epochs: Epochs in which the learning rate rises linearly.
        warmup_updates: Updates in which it does, instead of warmup_epochs.
        warmup_lr: Learning rate that it rises from; by default a hundredth of lr.
        warmup_lr_per_1024: The same for an update of 1024 images.
        weight_decay: The optimizer's, on all but vectors, biases and positions.
        undecayed: Parts of parameters' names, such as norm: those alone are then left without weight decay, and vectors
            and biases have it too, as OpenMMLab's paramwise_cfg says.
        decay_ssm: Whether it holds for the matrices of the scan's own parameters too, A_logs and dt_projs_bias, as in
            upstream's training.
        label_smoothing: Share of the target that is spread over all classes.
        clip_grad: Largest norm of the gradient; 0 = no clipping.
        ema_decay: Decay of the moving average of the weights, which is what is measured and saved; 0 = none.
        ema_warmup: Whether the average starts with a smaller decay, which suits short runs.
        mixup: Mixup's alpha; 0 = off.
        cutmix: CutMix's alpha; 0 = off.
        drop_path_rate: Stochastic depth.
        seed: Of weights, order and augmentation; the split has its own, data.seed.
        device: auto, cpu, cuda, mps or xpu.
        compile: Whether the training step's model is compiled by torch.compile.
        checkpointing: Whether activations are computed again in backward instead of being kept, which saves memory.
        tf32: Whether float32 matrix products on a GPU may use TensorFloat-32.
        mixed_precision: bf16 or fp16 (GPU only) for the matrix products; no = float32.
        num_workers: Processes that load images; 0 = none.
        select_by: What makes an epoch the best on the validation images, for classification the highest accuracy or the
            lowest loss.
        save_every: Epochs between two saves of the training state and of the weights.
        save_every_steps: Steps (batches of one process) between two saves of the training state inside an epoch, each
            at the next update of the weights; 0 = none.
        save_every_minutes: Minutes between two such saves; 0 = none.
        keep_last: Training states that are kept: the last, and those before it, which serve if the last is damaged.
        log_every: Steps on a GPU between two looks at what it computes, each of which waits for it: for the figures on
            the screen and the trackers, for a loss that is not finite, and for several processes to agree on a save or
            a stop.
        skip_nonfinite: Updates with a loss or gradient that is not finite that may be left out in all; one more stops
            the run.
        trackers: Where the figures go besides metrics.csv: tensorboard, or another name that accelerate knows; several
            with commas.
        process_timeout: Seconds after which a process that waits for another gives up.
        selective_scan_backend: The scan's implementation; the fastest that runs by default.
        output: Folder of the run; by default a new one under runs/.
        resume: Folder of a run to go on with. Fields left out are that run's; epochs may be changed, and with it the
            rest of the learning-rate curve. With auto, the run in output if there is one, else a new one.
        task: What is learnt: classification (one class an image), multilabel (any number), segmentation (one class a
            pixel) or detection (boxes and masks of objects).
        task_options: Options that the task alone has: of classification and multilabel class_weights, which is none,
            balanced, {class: weight} or a CSV file with the columns class and weight; of segmentation see
            docs/segmentation.md.
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
    epoch_updates: int | None = None
    optimizer: Literal["adamw", "muon"] | None = None
    lr: float | None = None
    lr_per_1024: float | None = None
    min_lr: float | None = None
    min_lr_per_1024: float | None = None
    schedule: Literal["cosine", "poly", "steps"] | None = None
    poly_power: float = 1.0
    drop_epochs: tuple[int, ...] = ()
    warmup_epochs: int | None = None
    warmup_updates: int | None = None
    warmup_lr: float | None = None
    warmup_lr_per_1024: float | None = None
    weight_decay: float | None = None
    undecayed: tuple[str, ...] | None = None
    decay_ssm: bool = True
    label_smoothing: float | None = None
    clip_grad: float | None = None
    ema_decay: float | None = None
    ema_warmup: bool = True
    mixup: float | None = None
    cutmix: float | None = None
    drop_path_rate: float | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    compile: bool = False
    checkpointing: bool = False
    tf32: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_workers: int | None = None
    select_by: str | None = None
    save_every: int = 1
    save_every_steps: int = 0
    save_every_minutes: float = 0.0
    keep_last: int = 2
    log_every: int = 50
    skip_nonfinite: int = 0
    trackers: str | None = None
    process_timeout: int = 6 * 3600
    selective_scan_backend: str | None = None
    output: Path | None = None
    resume: Path | None = None
    task: str = DEFAULT
    task_options: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None

    def __post_init__(self, given: frozenset[str] | None) -> None:
        whole = (
            "epochs",
            "batch_size",
            "grad_accumulation",
            "epoch_updates",
            "save_every",
            "keep_last",
            "log_every",
            "process_timeout",
        )
        for name in whole:
            self._want(name, "a whole number, 1 or more", lambda v: v >= 1)
        for name in ("save_every_steps", "skip_nonfinite", "warmup_updates"):
            self._want(name, "a whole number, 0 or more", lambda v: v >= 0)
        self._want("save_every_minutes", "a number, 0 or more", lambda v: 0 <= v < float("inf"))
        for name in ("warmup_epochs", "num_workers", "seed", "reset_stages", "freeze_stages", "head_only_epochs"):
            self._want(name, "a whole number, 0 or more", lambda v: v >= 0)
        for name in ("lr", "lr_per_1024"):
            self._want(name, "a number above 0", lambda v: 0 < v < float("inf"))
        for name in (
            "min_lr",
            "min_lr_per_1024",
            "warmup_lr",
            "warmup_lr_per_1024",
            "weight_decay",
            "clip_grad",
            "mixup",
            "cutmix",
        ):
            self._want(name, "a number, 0 or more", lambda v: 0 <= v < float("inf"))
        for name in ("label_smoothing", "ema_decay", "drop_path_rate"):
            self._want(name, "a number from 0 up to, not including, 1", lambda v: 0 <= v < 1)
        if (self.schedule == "steps") != bool(self.drop_epochs) or min(self.drop_epochs, default=1) < 1:
            raise ConfigError(
                f"schedule={self.schedule}, drop_epochs={list(self.drop_epochs)}: schedule=steps and epochs from 1 on, "
                "such as [8, 11], go together"
            )
        self._want("poly_power", "a number above 0", lambda v: 0 < v < float("inf"))
        self._want("layer_decay", "a number above 0, up to 1", lambda v: 0 < v <= 1)
        figures = [metric.name for metric in self.learnt.metrics]
        self._want("select_by", " or ".join(sorted(figures)), lambda v: v in figures)
        self._want("device", "auto, cpu, cuda, mps or xpu", lambda v: v in ("auto", "cpu", "cuda", "mps", "xpu"))
        self._want("mixed_precision", "no, bf16 or fp16", lambda v: v in ("no", "bf16", "fp16"))
        if self.tf32 and self.device == "cpu":
            raise ConfigError("tf32=True with device=cpu: TensorFloat-32 is a format of GPUs; leave it out")
        if self.epochs is not None and self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs={self.warmup_epochs} must be fewer than epochs={self.epochs}")
        if self.warmup_updates is not None and self.schedule == "cosine":
            raise ConfigError(f"warmup_updates={self.warmup_updates} is for schedule=poly; give warmup_epochs")
        if self.reset_stages and self.init is None:
            raise ConfigError(f"reset_stages={self.reset_stages} needs init: without it every stage is fresh")
        if self.resume == AUTO and self.output is None:
            raise ConfigError("resume=auto goes on with the run in output if there is one: give output, a folder")
        for name in ("min_lr", "warmup_lr"):
            for least, most in ((name, "lr"), (per_1024(name), "lr_per_1024")):
                here, there = getattr(self, least), getattr(self, most)
                if here is not None and there is not None and here > there:
                    raise ConfigError(f"{least}={here} is above {most}={there}")
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
    def dataset_recipe(self) -> Recipe:
        """What suits the data set. Where its choice of an epoch is by another task's figure, the headline chooses."""
        recipe = recipe_for(self.data.dataset, self.task)
        known = recipe.select_by in [metric.name for metric in self.learnt.metrics]
        return recipe if known else replace(recipe, select_by=self.learnt.headline)

    def resolved(self) -> TrainConfig:
        """This configuration with every field filled in that has a value in its recipe, or a default of its data set.

        Learning rates for 1024 images stay what they are: see `for_processes`.

        Raises:
            ConfigError: a recipe that cannot be used, or fields that contradict each other once filled in.
        """
        return with_defaults(with_recipe(self))

    def for_processes(self, count: int) -> TrainConfig:
        """This configuration with the learning rates that an update of so many processes' images has.

        Raises:
            ConfigError: a rate that is given as it is does not go with one that follows the batch.
        """
        changes: dict[str, Any] = rates(self, count)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in ``config.yaml``: a file that builds the same configuration again."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
