"""What a task is: all that training, evaluation and prediction ask of it, and the small values that they exchange.

`vmamba.train` and `vmamba.evaluate` know nothing but this. A `Task` is bound to the meaning of a model's inputs and
outputs (for classification: the preprocessing and the class names); it is made from a data set or read back from a
weight file. What crosses the border are tensors, modules and plain values. A *batch* is whatever `Task.collate` makes,
*inputs* whatever the model takes, *outputs* whatever it returns in eval mode: only the task looks inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType
    from torch.utils.data import Dataset
    from typing_extensions import Self

    from vmamba.data import Augmentation, DataConfig, Preprocessing
    from vmamba.models.trunk import Trunk
    from vmamba.weights import WeightFile


@dataclass(frozen=True)
class Metric:
    """A figure that a task reports: what it is called and how it is read.

    Attributes:
        name: key and, behind ``train_`` or ``val_``, column of ``metrics.csv``.
        label: on the line of an epoch.
        title: above its curve, with the unit.
        digits: after the point.
        percent: whether it is a share, shown in percent.
        larger_is_better: which way the best epoch lies.
        since_later: whether runs of earlier versions may lack it.
    """

    name: str
    label: str
    title: str
    digits: int = 4
    percent: bool = False
    larger_is_better: bool = False
    since_later: bool = False

    def text(self, value: float, fewer: int = 0) -> str:
        """``value`` as it is printed, with ``fewer`` digits than usual."""
        return f"{value:.{self.digits - fewer}{'%' if self.percent else 'f'}}"

    def rank(self, value: float) -> float:
        """``value``, its sign changed where smaller is better."""
        return value if self.larger_is_better else -value


class Settings(Protocol):
    """What a task may read of a training configuration; `vmamba.train.config.TrainConfig`, resolved, is one."""

    @property
    def model(self) -> str:
        """A model's name."""

    @property
    def model_options(self) -> Mapping[str, Any]:
        """Other fields of the model's configuration."""

    @property
    def drop_path_rate(self) -> float | None:
        """Stochastic depth."""

    @property
    def selective_scan_backend(self) -> str | None:
        """The scan's implementation."""

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in backward instead of being kept."""

    @property
    def label_smoothing(self) -> float | None:
        """Share of a target that is spread over all its alternatives."""

    @property
    def mixup(self) -> float | None:
        """Mixup's alpha; 0 = off."""

    @property
    def cutmix(self) -> float | None:
        """CutMix's alpha; 0 = off."""


class AnswerSettings(Protocol):
    """What a task may read of `vmamba.evaluate.predict.PredictConfig`."""

    @property
    def topk(self) -> int:
        """Alternatives shown for each image, where a task has such."""

    @property
    def truth(self) -> Literal["none", "folder"]:
        """What tells an image's true answer: nothing, or the name of its folder."""

    @property
    def threshold(self) -> float | None:
        """From which probability on a label holds, where a task has such; None: as the weights say."""


class Subsets(Protocol):
    """A data set's samples in three parts; `vmamba.data.Splits` is one."""

    @property
    def train(self) -> Sized:
        """To learn from."""

    @property
    def val(self) -> Sized:
        """To choose the best epoch by."""

    @property
    def test(self) -> Sized | None:
        """For the final measurement only; None where the data set has none."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files left out because they cannot be read."""

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to be resumed, line by line."""


@dataclass(frozen=True)
class ModelParts:
    """Where fine-tuning finds what it holds still or leaves fresh.

    Attributes:
        model: the whole model.
        trunk: patch embedding and stages, within it or itself.
        head: what learns alone in the first epochs, if that is asked for.
    """

    model: nn.Module
    trunk: Trunk
    head: nn.Module


@dataclass(frozen=True)
class BatchLoss:
    """One training batch's result.

    Attributes:
        loss: scalar to minimise, a mean over samples.
        count: how many samples.
        sums: for every metric in `Task.running` but the loss, its sum over the samples; scalars, without gradient.
    """

    loss: Tensor
    count: int
    sums: Mapping[str, Tensor]


class Objective(Protocol):
    """What training minimises; made anew for each process of a run."""

    def prepare(self, batch: Any) -> Any:
        """Change a batch on the model's device before the model sees it, as Mixup does."""

    def loss(self, model: nn.Module, batch: Any) -> BatchLoss:
        """Run the model, in training mode, on a prepared batch."""


class Measurement(Protocol):
    """What a model was found to do on a set of samples."""

    @property
    def count(self) -> int:
        """How many samples."""

    @property
    def figures(self) -> Mapping[str, float]:
        """One value for each of `Task.metrics`."""

    def summary(self) -> str:
        """The figures in one line."""

    def tables(self, part: str) -> Iterable[RenderableType]:
        """What more the terminal shows of a measurement on ``part``, such as ``"test"``."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""

    def metadata(self) -> Mapping[str, str]:
        """What a weight file should say of these weights if this was measured on validation samples; mostly nothing."""


class Meter(Protocol):
    """Collects what a measurement needs, batch by batch."""

    def observe(self, outputs: Any, batch: Any) -> Any:
        """What must be known of a batch, in a form that can be gathered from several processes.

        Tensors, alone or nested, with the samples along their first axis; or a list of one object a sample.
        """

    def update(self, observation: Any) -> None:
        """Take in what `observe` gave, in this or another process."""

    def measurement(self) -> Measurement:
        """The result so far; needs one sample at least."""


class Answer(Protocol):
    """What a model says about one image file."""

    @property
    def path(self) -> Path:
        """The file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""


class Task(Protocol):
    """A kind of learning, bound to what a model's inputs and outputs mean.

    Attributes:
        name: in the table of tasks and in weight files.
        running: what a training batch tells; the first is the loss that is minimised.
        metrics: what a `Measurement` tells; an epoch may be chosen by each.
        headline: the one of ``metrics`` that a run is summed up by, and that chooses epochs where nothing else is said.
        described_by: the entries of a weight file's metadata that `from_metadata` needs.
        default_model: what is trained where no model is named.
        default_dataset: what it is trained on where no images are named.
        own_images: the data set that a folder of one's own is where no data set is named.
        batch_size: samples in one forward pass of measuring and answering, where nothing is said.
    """

    name: ClassVar[str]
    running: ClassVar[tuple[Metric, ...]]
    metrics: ClassVar[tuple[Metric, ...]]
    headline: ClassVar[str]
    described_by: ClassVar[tuple[str, ...]]
    default_model: ClassVar[str]
    default_dataset: ClassVar[str]
    own_images: ClassVar[str]
    batch_size: ClassVar[int]

    # --- where it comes from, and what weight files say

    @classmethod
    def load(cls, data: DataConfig, options: Mapping[str, Any]) -> tuple[Self, Subsets]:
        """Load the data of a configuration, and learn from them what there is to learn.

        Args:
            data: which.
            options: the configuration's ``task_options``.

        Raises:
            DataError: they cannot be used. ConfigError: an option that there is not.
        """

    @classmethod
    def check_model(cls, name: str, options: Mapping[str, Any]) -> None:
        """Make sure, before data are loaded, that `build` knows a model of this name that has these ``model_options``.

        Raises:
            ConfigError: it does not.
        """

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Undo `metadata`. Raises ValueError or TypeError where the text makes no sense."""

    def metadata(self, model: nn.Module) -> dict[str, str]:
        """What a weight file says besides its name: ``described_by``, and what `rebuild` needs."""

    def configured(self, options: Mapping[str, Any]) -> Self:
        """This task, measuring and answering as ``options`` say.

        Raises:
            ConfigError: an option that there is not, or a value that makes no sense.
        """

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to pixels."""

    @property
    def summary(self) -> str:
        """What there is to learn in a few words, such as ``"10 classes"``."""

    # --- data

    def reload(self, data: DataConfig, weights: Path) -> Subsets:
        """Load the data of a configuration to measure a trained model on.

        Args:
            data: which.
            weights: what messages call the model.

        Raises:
            DataError: they cannot be used, or what they show is not what was learnt.
        """

    def dataset(self, samples: Any, augmentation: Augmentation | None = None) -> Dataset[Any]:
        """One of the `Subsets`, ready for a loader; nothing is random without ``augmentation``."""

    def collate(self, samples: list[Any]) -> Any:
        """A batch out of a data set's items."""

    def inputs(self, batch: Any) -> Any:
        """The part of a batch that the model takes in eval mode."""

    def run(self, model: nn.Module, inputs: Any) -> Any:
        """The outputs of a model in eval mode: what it returns, unless inputs must go through it in pieces."""

    # --- the model

    def build(self, settings: Settings) -> nn.Module:
        """The model of a configuration, with fresh weights."""

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        """The model that a weight file describes, whose weights are then loaded. Raises as `from_metadata`."""

    def check(self, model: nn.Module, name: str) -> None:
        """Make sure that the model called ``name``, in eval mode, takes inputs of this task's size.

        Raises:
            ConfigError: it does not.
        """

    def parts(self, model: nn.Module) -> ModelParts:
        """Where fine-tuning finds what it needs."""

    def adapt(self, model: nn.Module, weights: WeightFile, source: str) -> dict[str, Tensor]:
        """A state dict for ``model`` with all that ``weights`` have for it; the model's own where they were learnt
        for something else.

        Raises:
            CheckpointError: they do not fit.
        """

    # --- learning and measuring

    def objective(self, settings: Settings) -> Objective:
        """What a run of this configuration minimises."""

    def meter(self) -> Meter:
        """A fresh one."""

    def pictures(self, measurement: Any, title: str) -> dict[str, Figure]:
        """Pictures of a measurement that `meter` gave, by file name without ending, such as ``"confusion"``."""

    # --- answering

    def read(self, path: Path) -> Any:
        """An image file as one input. Raises DataError where it cannot be read."""

    def stack(self, inputs: Sequence[Any]) -> Any:
        """Several inputs as the model takes them."""

    def answers(self, outputs: Any, paths: Sequence[Path], settings: AnswerSettings) -> Sequence[Answer]:
        """What the outputs say about each file."""

    def recall(self, values: Mapping[str, Any]) -> Answer:
        """An answer from what its `Answer.to_dict` gave, perhaps in another process."""

    def print_answers(self, answers: Sequence[Any], console: Console) -> None:
        """Show answers on the terminal."""

    def sheet(self, answers: Sequence[Any], total: int, title: str) -> Figure:
        """Draw answers beside their images; ``total`` counts those not shown too."""
