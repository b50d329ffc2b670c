"""Semantic segmentation as a `vmamba.tasks.protocol.Task`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmamba.data import Augmentation, DataConfig, Preprocessing, read_image
from vmamba.data.reading.arrays import read_pixels
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.data.segmentation.loading import MaskOptions, load_segmentation
from vmamba.data.segmentation.masks import MaskFormat
from vmamba.data.segmentation.sets import SegmentationSplits, SegmentedImages, label_counts
from vmamba.data.segmentation.transforms import EvalTransform, Resizing, SegmentationAugmentation, TrainTransform
from vmamba.errors import ConfigError, DataError
from vmamba.inference.tiling import View, segment
from vmamba.tasks.class_weights import class_weights, weights_by_rarity
from vmamba.tasks.options import changed, sorted_options
from vmamba.tasks.protocol import AnswerSettings, Metric, ModelParts, Settings
from vmamba.tasks.segmentation.items import CropItems, WholeItems
from vmamba.tasks.segmentation.models import (
    adapt_segmenter,
    check_segmenter,
    create_segmenter,
    network,
    segmenter_from_metadata,
    segmenter_metadata,
    segmenter_parts,
)
from vmamba.tasks.segmentation.objective import PixelLoss
from vmamba.tasks.segmentation.options import InferenceOptions, TrainingOptions
from vmamba.tasks.segmentation.prediction import SegmentedImage
from vmamba.tasks.segmentation.scores import PixelMeter, SegmentationScores
from vmamba.tasks.vssm_models import check_image_size
from vmamba.weights import WeightFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

LOSS = Metric("loss", "loss", "Loss (nats)")
MIOU = Metric("miou", "mIoU", "Mean IoU", digits=2, percent=True, larger_is_better=True)
MACC = Metric("macc", "mAcc", "Mean accuracy", digits=2, percent=True, larger_is_better=True)
AACC = Metric("aacc", "aAcc", "Pixels right", digits=2, percent=True, larger_is_better=True)
DICE = Metric("dice", "Dice", "Mean Dice", digits=2, percent=True, larger_is_better=True)


@dataclass(frozen=True)
class Segmentation:
    """One of ``classes`` for each pixel.

    A training batch is crops ``(b, in_chans, H, W)`` and their labels ``(b, H, W)``. In measuring, a batch is images of
    any sizes, each as its views (see `EvalTransform`) with its own size, labels and name; inputs are views and size of
    each; outputs a label for each pixel of each image, ``(h, w)``, at its own size.

    Attributes:
        classes: names and colours, in the order of the logits.
        preprocessing: from an image to pixels; its size is the training crops'.
        masks: how mask files are read, and which label is neither learnt nor counted.
        training: what is learnt, and how; weight files do not keep it.
        inference: how images go through the network.
        class_weights: what a pixel of each class counts in the loss; empty where all count the same.
        distances: whether borders' distances are measured.
    """

    classes: PixelClasses
    preprocessing: Preprocessing
    masks: MaskFormat
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    class_weights: tuple[float, ...] = ()
    distances: bool = False

    name: ClassVar[str] = "segmentation"
    running: ClassVar[tuple[Metric, ...]] = (LOSS, AACC)
    metrics: ClassVar[tuple[Metric, ...]] = (MIOU, MACC, AACC, DICE)
    headline: ClassVar[str] = MIOU.name
    described_by: ClassVar[tuple[str, ...]] = ("classes", "preprocessing", "segmentation")
    default_model: ClassVar[str] = "upernet_vmamba_nano"
    default_dataset: ClassVar[str] = "shapes"
    own_images: ClassVar[str] = "masks"
    batch_size: ClassVar[int] = 1

    @classmethod
    def load(cls, data: DataConfig, options: Mapping[str, Any]) -> tuple[Segmentation, SegmentationSplits]:
        """The data set's classes, and its images."""
        training, inference = sorted_options(cls.name, TrainingOptions, InferenceOptions, options)
        splits = load_segmentation(data, training.masks)
        names, given = splits.classes.names, training.class_weights
        if given == "balanced":
            weights = weights_by_rarity(names, label_counts(splits.train, len(names)), "training pixel")
        else:
            weights = class_weights(given, names, np.zeros(0, np.int64))
        task = cls(splits.classes, splits.preprocessing, splits.masks, inference, training, weights)
        return task, splits

    @classmethod
    def check_model(cls, name: str, options: Mapping[str, Any]) -> None:
        """A model with a decoder."""
        check_segmenter(name, options)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Segmentation:
        """Undo `metadata`."""
        names, said = json.loads(metadata["classes"]), json.loads(metadata["segmentation"])
        palette = tuple(tuple(colour) for colour in said["palette"])
        classes = PixelClasses(tuple(names), palette, said["made_up"])
        masks = MaskFormat(
            len(names),
            said["ignore_index"],
            said["reduce_zero_label"],
            tuple(said["mask_values"]),
            () if classes.made_up else palette,
        )
        inference = changed(InferenceOptions(), cls.name, said["inference"])
        return cls(classes, Preprocessing.from_dict(json.loads(metadata["preprocessing"])), masks, inference)

    def metadata(self, model: nn.Module) -> dict[str, str]:
        """The model's configuration, the classes, the preprocessing, and how masks are read; each as JSON."""
        said = {
            "palette": [list(colour) for colour in self.classes.palette],
            "made_up": self.classes.made_up,
            "ignore_index": self.masks.ignore_index,
            "reduce_zero_label": self.masks.reduce_zero_label,
            "mask_values": list(self.masks.values),
            "inference": self.inference.to_dict(),
        }
        classes = json.dumps(list(self.classes.names), ensure_ascii=False)
        return {**segmenter_metadata(model, self.preprocessing), "classes": classes, "segmentation": json.dumps(said)}

    @property
    def summary(self) -> str:
        """How many classes."""
        return f"{len(self.classes)} classes of pixels"

    def configured(self, options: Mapping[str, Any]) -> Segmentation:
        """With other `InferenceOptions`, or ``distances``."""
        rest = dict(options)
        distances = rest.pop("distances", self.distances)
        if not isinstance(distances, bool):
            raise ConfigError(f"options: distances={distances!r}: want true or false")
        return replace(self, inference=changed(self.inference, self.name, rest), distances=distances)

    def reload(self, data: DataConfig, weights: Path) -> SegmentationSplits:
        """Images with the model's channels, and masks of its classes."""
        p, m = self.preprocessing, self.masks
        data = replace(data, in_chans=p.in_chans, full_depth=p.full_depth)
        if p.full_depth:  # what was measured then holds
            data = replace(data, mean=p.mean, std=p.std)
        generated = data.dataset == "shapes"
        options = MaskOptions(self.classes, m.ignore_index, m.reduce_zero_label, m.values)
        splits = load_segmentation(data, MaskOptions() if generated else options, to_learn=False)
        if splits.classes.names != self.classes.names:
            raise DataError(
                f"the data has the classes {', '.join(splits.classes.names)}, but {weights} was trained on "
                f"{', '.join(self.classes.names[:10])}; measure on images of those classes"
            )
        return splits

    def dataset(self, samples: SegmentedImages, augmentation: Augmentation | None = None) -> Dataset[Any]:
        """Crops to learn from, or whole images."""
        if augmentation is None:
            resizing, scales = Resizing(self.inference.resize), self.inference.scales
            return WholeItems(samples, EvalTransform(self.preprocessing, resizing, scales), self.masks.ignore_index)
        t, p = self.training, self.preprocessing
        changes = SegmentationAugmentation.of(augmentation, t.scale, t.max_class_share, p)
        transform = TrainTransform(p, Resizing(self.inference.resize), changes, self.masks.ignore_index)
        return CropItems(samples, transform, t.crops)

    def collate(self, samples: list[Any]) -> Any:
        """Crops and labels stacked; whole images side by side, since their sizes differ."""
        if isinstance(samples[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
        inputs = [(sample["views"], sample["size"]) for sample in samples]
        labels, names = ([sample[part] for sample in samples] for part in ("labels", "name"))
        return {"inputs": inputs, "labels": labels, "names": names}

    def inputs(self, batch: Any) -> Any:
        """Views and size of each image."""
        return batch["inputs"]

    def run(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        """A label for each pixel of each image, ``(h, w)`` at its own size, on the CPU."""
        tiling = self.inference.tiling(self.preprocessing.height)
        found = []
        for views, size in inputs:
            shown = [View(pixels) for pixels in views]
            if self.inference.flip:
                shown += [View(pixels.flip(-1), mirrored=True) for pixels in views]
            found.append(segment(network(model), shown, tuple(size), tiling))
        return found

    # --- the model

    def build(self, settings: Settings) -> nn.Module:
        """A segmenter with a score for each class."""
        return create_segmenter(settings, len(self.classes), self.preprocessing)

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        """The segmenter of the file's configuration."""
        return segmenter_from_metadata(metadata)

    def check(self, model: nn.Module, name: str) -> None:
        """Show the model one black crop."""
        check_image_size(model, self.preprocessing, name)

    def parts(self, model: nn.Module) -> ModelParts:
        """The trunk is the backbone, the head the decoder."""
        return segmenter_parts(model)

    def adapt(self, model: nn.Module, weights: WeightFile, source: str) -> dict[str, Tensor]:
        """A segmenter's weights, without its last convolutions where these are of other classes; or a classifier's,
        which serve the backbone.
        """
        return adapt_segmenter(model, weights, list(self.classes.names), source)

    # --- learning and measuring

    def objective(self, settings: Settings) -> PixelLoss:
        """Cross entropy, and Dice where asked for."""
        return PixelLoss(settings, self.training, self.class_weights)

    def meter(self) -> PixelMeter:
        """Counts pixels."""
        return PixelMeter(self.classes.names, self.masks.ignore_index, self.distances)

    def pictures(self, measurement: SegmentationScores, title: str) -> dict[str, Figure]:
        """The confusion matrix, in pixels."""
        from vmamba.tasks.classification.confusion import confusion_figure

        figure = confusion_figure(measurement.confusion, self.classes.names, title, in_percent=True)
        return {"confusion": figure}

    # --- answering

    def read(self, path: Path) -> Any:
        """An image's views and its size."""
        read: Any = read_pixels if self.preprocessing.full_depth else read_image
        return self._transform(read(path, self.preprocessing.in_chans))

    @cached_property
    def _transform(self) -> EvalTransform:
        return EvalTransform(self.preprocessing, Resizing(self.inference.resize), self.inference.scales)

    def stack(self, inputs: Sequence[Any]) -> Any:
        """Side by side, since their sizes differ."""
        return list(inputs)

    def answers(self, outputs: Any, paths: Sequence[Path], settings: AnswerSettings) -> list[SegmentedImage]:
        """The areas of each image's classes."""
        if settings.threshold is not None or settings.truth != "none":
            raise ConfigError("threshold and truth are for whole images' classes; leave them out for segmentation")
        return [
            SegmentedImage.of(path, labels.numpy(), self.classes) for path, labels in zip(paths, outputs, strict=True)
        ]

    def recall(self, values: Mapping[str, Any]) -> SegmentedImage:
        """Undo `SegmentedImage.to_dict`."""
        return SegmentedImage.from_dict(values, self.classes)

    def print_answers(self, answers: Sequence[SegmentedImage], console: Console) -> None:
        """A line an image."""
        from vmamba.tasks.segmentation.report import print_areas

        print_areas(answers, console)

    def sheet(self, answers: Sequence[SegmentedImage], total: int, title: str) -> Figure:
        """Overlays side by side."""
        from vmamba.tasks.segmentation.report import areas_sheet

        return areas_sheet(answers, total, title)
