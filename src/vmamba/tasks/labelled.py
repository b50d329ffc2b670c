"""What tasks share that give a whole image labels out of a list of classes, by a `VSSM` with a logit for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from vmamba.data import (
    Augmentation,
    DataConfig,
    LabelledImages,
    Preprocessing,
    Splits,
    TransformedImages,
    load_splits,
    read_image,
)
from vmamba.data.arrays import read_pixels
from vmamba.errors import ConfigError
from vmamba.models import model_config
from vmamba.tasks.classification.labels import in_order
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.tasks.vssm_models import build_vssm, check_image_size, vssm_from_metadata, vssm_metadata, vssm_parts
from vmamba.weights import WeightFile, adapt_to

if TYPE_CHECKING:
    from typing_extensions import Self

    from vmamba.data.preprocessing import ImageTransform


@dataclass(frozen=True)
class ImageLabels:
    """Labels out of ``classes`` for each image.

    A batch is pixels ``(b, in_chans, H, W)`` and labels; inputs are the pixels; outputs are logits ``(b, classes)``.

    Attributes:
        classes: their names, in the order of the logits.
        preprocessing: from an image to pixels.
        ids: a word for each class that no other has, such as ImageNet's WordNet ids, by which images' folders may be
            called too; empty where names are all there is.
        class_weights: what each class counts in the loss; empty where all count the same. Weight files do not keep it.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    ids: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()

    default_model: ClassVar[str] = "vmamba_nano"
    default_dataset: ClassVar[str] = "digits"
    own_images: ClassVar[str] = "folder"
    batch_size: ClassVar[int] = 64

    @classmethod
    def check_model(cls, name: str, options: Mapping[str, Any]) -> None:
        """A classifier."""
        model_config(name, **options)

    def metadata(self, model: nn.Module) -> dict[str, str]:
        """The model's configuration, the classes, the preprocessing; each as JSON."""
        classes = json.dumps(list(self.classes), ensure_ascii=False)
        ids = {"class_ids": json.dumps(list(self.ids))} if self.ids else {}
        return {**vssm_metadata(model, self.preprocessing), "classes": classes, **ids}

    @property
    def summary(self) -> str:
        """How many classes."""
        return f"{len(self.classes)} classes"

    def reload(self, data: DataConfig, weights: Path) -> Splits:
        """Images with the model's channels, labelled in the order of its logits."""
        p = self.preprocessing
        data = replace(data, in_chans=p.in_chans, full_depth=p.full_depth)
        if p.full_depth:  # what was measured then holds
            data = replace(data, mean=p.mean, std=p.std)
        splits = load_splits(data)
        return in_order(splits, self.classes, self.ids, weights)

    def dataset(self, samples: LabelledImages, augmentation: Augmentation | None = None) -> TransformedImages:
        """Pixels and label of each image."""
        p = self.preprocessing
        return TransformedImages(
            samples,
            p.eval_transform() if augmentation is None else p.train_transform(augmentation),
            replace=augmentation is not None,
        )

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Pixels and labels, stacked."""
        images, labels = default_collate(samples)
        return images, labels

    def inputs(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The pixels."""
        return batch[0]

    def run(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits ``(b, classes)``."""
        logits: Tensor = model(inputs)
        return logits

    def configured(self, options: Mapping[str, Any]) -> Self:
        """As it is: there is nothing to choose."""
        if options:
            raise ConfigError(
                f"options={dict(options)}: classes of whole images are asked for in one way; leave them out"
            )
        return self

    def build(self, settings: Settings) -> nn.Module:
        """A `VSSM` with a logit for each class."""
        return build_vssm(settings, len(self.classes), self.preprocessing)

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        """The `VSSM` of the file's configuration."""
        return vssm_from_metadata(metadata)

    def check(self, model: nn.Module, name: str) -> None:
        """Show the model one black image."""
        check_image_size(model, self.preprocessing, name)

    def parts(self, model: nn.Module) -> ModelParts:
        """The head is the linear layer alone."""
        return vssm_parts(model)

    def adapt(self, model: nn.Module, weights: WeightFile, source: str) -> dict[str, Tensor]:
        """Everything but the head; that too if it was learnt for the same classes, or for as many without a name.

        A head that is sure of ten other classes would have to be unlearnt first.
        """
        adapted = adapt_to(weights.state_dict, model, source)
        if _classes_of(weights) in (None, list(self.classes)):
            return adapted
        own = model.state_dict()
        return {name: own[name] if name.startswith("classifier.head.") else value for name, value in adapted.items()}

    def read(self, path: Path) -> Tensor:
        """Pixels ``(in_chans, H, W)``."""
        read = read_pixels if self.preprocessing.full_depth else read_image
        return self._transform(read(path, self.preprocessing.in_chans))

    @cached_property
    def _transform(self) -> ImageTransform:
        return self.preprocessing.eval_transform()

    def stack(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pixels ``(b, in_chans, H, W)``."""
        return torch.stack(list(inputs))


def _classes_of(weights: WeightFile) -> object:
    """The class names that a run of ours wrote into its weights; None elsewhere."""
    try:
        return json.loads(weights.metadata["classes"])
    except (KeyError, ValueError):
        return None
