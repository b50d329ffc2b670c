"""Detection and instance segmentation as a `vmamba.tasks.protocol.Task`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmamba.data import Augmentation, DataConfig, Preprocessing, read_image
from vmamba.data.detection.categories import Categories
from vmamba.data.detection.loading import load_detection
from vmamba.data.detection.sets import DetectionImages, DetectionSplits
from vmamba.data.detection.transforms import DetectionAugmentation, EvalTransform, TrainTransform
from vmamba.errors import ConfigError, DataError
from vmamba.heads.mask_rcnn import Detections
from vmamba.heads.mask_rcnn.preparation import FIT
from vmamba.tasks.detection.items import EvalItems, Inputs, TrainItems, collate, stacked
from vmamba.tasks.detection.models import (
    adapt_detector,
    check_detector,
    create_detector,
    detector_from_metadata,
    detector_metadata,
    detector_parts,
)
from vmamba.tasks.detection.objective import DetectionLoss
from vmamba.tasks.detection.options import InferenceOptions, TrainingOptions
from vmamba.tasks.detection.prediction import DetectedImage
from vmamba.tasks.detection.scores import DetectionMeter, DetectionScores
from vmamba.tasks.options import changed, sorted_options
from vmamba.tasks.protocol import AnswerSettings, Metric, ModelParts, Settings
from vmamba.weights import WeightFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

LOSS = Metric("loss", "loss", "Loss (nats)")
PARTS = (
    Metric("loss_rpn_cls", "RPN score", "Proposals' scores (nats)"),
    Metric("loss_rpn_bbox", "RPN box", "Proposals' boxes"),
    Metric("loss_cls", "class", "Classes (nats)"),
    Metric("loss_bbox", "box", "Boxes"),
    Metric("loss_mask", "mask", "Masks (nats)"),
)
BOX_AP = Metric("box_ap", "box AP", "Box AP", digits=1, percent=True, larger_is_better=True)
BOX_AP50 = Metric("box_ap50", "box AP50", "Box AP at IoU 0.5", digits=1, percent=True, larger_is_better=True)
MASK_AP = Metric("mask_ap", "mask AP", "Mask AP", digits=1, percent=True, larger_is_better=True)
MASK_AP50 = Metric("mask_ap50", "mask AP50", "Mask AP at IoU 0.5", digits=1, percent=True, larger_is_better=True)
#: The generated shapes are shown smaller than they are made: a laptop's CPU then learns them in minutes.
SHAPES_FIT = (128, 128)
#: From which score on an object is shown, where nothing else is said.
SHOWN = 0.5


@dataclass(frozen=True)
class Detection:
    """The objects in an image: box, mask and one of ``categories`` each.

    A batch is what `vmamba.tasks.detection.items.collate` makes; inputs are pixels ``(b, 3, H, W)``, each image's size
    without padding and in its file; outputs are `Detections` of each image, in the pixels of its file.

    Attributes:
        categories: names and numbers, in the order of the labels.
        preprocessing: mean and deviation; images are resized as ``inference`` says.
        inference: how images go through the network.
        training: what is learnt; weight files do not keep it.
    """

    categories: Categories
    preprocessing: Preprocessing
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    name: ClassVar[str] = "detection"
    running: ClassVar[tuple[Metric, ...]] = (LOSS, *PARTS)
    metrics: ClassVar[tuple[Metric, ...]] = (BOX_AP, BOX_AP50, MASK_AP, MASK_AP50)
    headline: ClassVar[str] = BOX_AP.name
    described_by: ClassVar[tuple[str, ...]] = ("classes", "preprocessing", "detection")
    default_model: ClassVar[str] = "mask_rcnn_vmamba_nano"
    default_dataset: ClassVar[str] = "shapes"
    own_images: ClassVar[str] = "coco"
    batch_size: ClassVar[int] = 1

    @classmethod
    def load(cls, data: DataConfig, options: Mapping[str, Any]) -> tuple[Detection, DetectionSplits]:
        """The data set's categories, and its images. Images of COCO's format are resized as upstream's, by default."""
        resize = SHAPES_FIT if data.dataset == "shapes" else FIT
        options = {"resize": list(resize), **options}
        training, inference = sorted_options(cls.name, TrainingOptions, InferenceOptions, options)
        splits = load_detection(data)
        return cls(splits.categories, splits.preprocessing, inference, training), splits

    @classmethod
    def check_model(cls, name: str, options: Mapping[str, Any]) -> None:
        """A Mask R-CNN."""
        check_detector(name, options)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Detection:
        """Undo `metadata`."""
        said = json.loads(metadata["detection"])
        categories = Categories(tuple(json.loads(metadata["classes"])), tuple(said["category_ids"]))
        inference = changed(InferenceOptions(), cls.name, said["inference"])
        return cls(categories, Preprocessing.from_dict(json.loads(metadata["preprocessing"])), inference)

    def metadata(self, model: nn.Module) -> dict[str, str]:
        """The model's configuration, the categories, and how images are shown; each as JSON."""
        said = {"category_ids": list(self.categories.ids), "inference": self.inference.to_dict()}
        classes = json.dumps(list(self.categories.names), ensure_ascii=False)
        return {**detector_metadata(model, self.preprocessing), "classes": classes, "detection": json.dumps(said)}

    @property
    def summary(self) -> str:
        """How many categories."""
        return f"{len(self.categories)} categories of objects"

    def configured(self, options: Mapping[str, Any]) -> Detection:
        """With other `InferenceOptions`."""
        return replace(self, inference=changed(self.inference, self.name, options))

    def reload(self, data: DataConfig, weights: Path) -> DetectionSplits:
        """Images with objects of the model's categories."""
        splits = load_detection(data, to_learn=False)
        if splits.categories.names != self.categories.names:
            raise DataError(
                f"the data has the categories {', '.join(splits.categories.names[:10])}, but {weights} was trained on "
                f"{', '.join(self.categories.names[:10])}; measure on images of those categories"
            )
        return splits

    def dataset(self, samples: DetectionImages, augmentation: Augmentation | None = None) -> Dataset[Any]:
        """Changed images to learn from, or whole ones."""
        if augmentation is None:
            return EvalItems(samples, EvalTransform(self.preprocessing, self.inference.resize))
        t = self.training
        changes = DetectionAugmentation.of(augmentation, self.inference.resize, t.scales, t.crop)
        return TrainItems(samples, TrainTransform(self.preprocessing, changes))

    def collate(self, samples: list[Any]) -> Any:
        """Images padded to one size."""
        return collate(samples)

    def inputs(self, batch: Any) -> Inputs:
        """Pixels and sizes."""
        inputs: Inputs = batch["inputs"]
        return inputs

    def run(self, model: nn.Module, inputs: Inputs) -> list[Detections]:
        """The objects of each image."""
        pixels, sizes, originals = inputs
        found: list[Detections] = model(pixels, sizes, originals)
        return found

    # --- the model

    def build(self, settings: Settings) -> nn.Module:
        """A Mask R-CNN with a score for each category."""
        if self.preprocessing.in_chans != 3:
            raise ConfigError(f"in_chans={self.preprocessing.in_chans}: detection takes RGB images, 3 channels")
        return create_detector(settings, len(self.categories))

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        """The detector of the file's configuration."""
        return detector_from_metadata(metadata)

    def check(self, model: nn.Module, name: str) -> None:
        """Any size will do: images are padded to what the network takes."""

    def parts(self, model: nn.Module) -> ModelParts:
        """The trunk is the backbone."""
        return detector_parts(model)

    def adapt(self, model: nn.Module, weights: WeightFile, source: str) -> dict[str, Tensor]:
        """A detector's weights, without its last layers where these are of other categories; or a classifier's, which
        serve the backbone.
        """
        return adapt_detector(model, weights, self.categories.names, source)

    # --- learning and measuring

    def objective(self, settings: Settings) -> DetectionLoss:
        """Mask R-CNN's losses."""
        return DetectionLoss(settings)

    def meter(self) -> DetectionMeter:
        """COCO's average precision."""
        return DetectionMeter(self.categories.names)

    def pictures(self, measurement: DetectionScores, title: str) -> dict[str, Figure]:
        """Average precision by category."""
        from vmamba.tasks.detection.report import precision_figure

        return {"precision": precision_figure(measurement, title)}

    # --- answering

    def read(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        """An image's pixels, and its own size."""
        return EvalTransform(self.preprocessing, self.inference.resize)(read_image(path, 3))

    def stack(self, inputs: Sequence[Any]) -> Inputs:
        """Images padded to one size."""
        return stacked([pixels for pixels, _ in inputs], [size for _, size in inputs])

    def answers(self, outputs: Any, paths: Sequence[Path], settings: AnswerSettings) -> list[DetectedImage]:
        """The objects of each file with a score of ``threshold``, 0.5 by default, or more."""
        if settings.truth != "none":
            raise ConfigError("truth is for whole images' classes; leave it out for detection")
        least = SHOWN if settings.threshold is None else settings.threshold
        found = (one.to(torch.device("cpu")) for one in outputs)
        return [
            DetectedImage.of(path, one.above(least), self.categories) for path, one in zip(paths, found, strict=True)
        ]

    def recall(self, values: Mapping[str, Any]) -> DetectedImage:
        """Undo `DetectedImage.to_dict`."""
        return DetectedImage.from_dict(values, self.categories)

    def print_answers(self, answers: Sequence[DetectedImage], console: Console) -> None:
        """A line an image."""
        from vmamba.tasks.detection.report import print_objects

        print_objects(answers, console)

    def sheet(self, answers: Sequence[DetectedImage], total: int, title: str) -> Figure:
        """Images with their objects drawn in."""
        from vmamba.tasks.detection.report import objects_sheet

        return objects_sheet(answers, total, title)
