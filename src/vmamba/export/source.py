"""What is exported: a run, a weight file or a named model, with its task and images to try it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vmamba.architecture.config import VSSMConfig
from vmamba.data import Preprocessing, imagenet_class_names
from vmamba.data.segmentation.classes import PixelClasses
from vmamba.data.segmentation.masks import IGNORE, MaskFormat
from vmamba.errors import CheckpointError, ConfigError, VMambaError, nearest
from vmamba.heads.mask_rcnn import MaskRCNN
from vmamba.heads.segmenter import Segmenter
from vmamba.models import VSSM
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Task
from vmamba.tasks.run_files import trained_on
from vmamba.tasks.segmentation.released import ade20k_task
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import FORMAT, Trained, load_trained, weight_metadata
from vmamba.weights import OFFICIAL, read_weights
from vmamba.zoo import create_model, list_models, load

_IMAGES = 4
_SEED = 0


@dataclass(frozen=True)
class Source:
    """A model to export, in eval mode, on the CPU, in float32.

    Attributes:
        model: the model.
        file_stem: for the exported file's name.
        preprocessing: from an image to pixels.
        metadata: what the exported file says about itself.
        pixels: real images, ``(b, in_chans, H, W)``.
        described: the weights and the images, in words.
        task: what it was trained for, where that is known.
        warning: what the user should know about the weights, or None.
    """

    model: VSSM | Segmenter
    file_stem: str
    preprocessing: Preprocessing
    metadata: Mapping[str, str]
    pixels: Tensor
    described: str
    task: Task | None = None
    warning: str | None = None

    @property
    def network(self) -> VSSMConfig:
        """The configuration of the model's stages."""
        config = self.model.config
        return config if isinstance(config, VSSMConfig) else config.backbone


def load_source(what: str) -> Source:
    """Load a run's folder (its best weights), a weight file, or a named model.

    A named model gets its released weights if they lie in torch hub's cache, and fresh ones otherwise; nothing is
    downloaded.

    Raises:
        CheckpointError: weights that cannot be used.
        ConfigError: neither a file nor a model's name; a model without a head.
    """
    path = Path(what)
    if path.exists():
        return _from_path(path)
    known = list_models()
    if what in known:
        return _from_name(what)
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"there is no run or weight file {what}")
    raise ConfigError(
        f"{what!r} is neither a run's folder, a weight file nor a model{nearest(what, known)}; "
        "`vmamba models` lists the models"
    )


def _from_path(path: Path) -> Source:
    if path.is_dir() or read_weights(path).metadata.get("format") == FORMAT:
        trained = load_trained(path)
        _refuse_detector(trained.model, str(path))
        stem = path.resolve().name if path.is_dir() else path.stem
        if not isinstance(trained.model, VSSM | Segmenter):
            raise ConfigError(
                f"{path} holds a {type(trained.model).__name__} for {trained.task.name}; want a VSSM or a segmenter"
            )
        pixels, images = _run_images(path, trained)
        described = f"{trained.name} from {trained.weights_path}; {images}"
        metadata = weight_metadata(trained.name, trained.model, trained.task)
        return Source(trained.model, stem, trained.preprocessing, metadata, pixels, described, trained.task)
    return _bare(load(path), path.stem, str(path), None)


def _from_name(name: str) -> Source:
    if name in OFFICIAL and OFFICIAL[name].path.is_file():
        return _bare(create_model(name, pretrained=True).eval(), name, "its released weights", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = create_model(name).eval()
    get = f"; `vmamba weights get {name}` fetches its trained ones" if name in OFFICIAL else ""
    warning = f"{name} has fresh, random weights: good for measuring speed and nothing else{get}"
    return _bare(model, name, "fresh weights", warning)


def _refuse_detector(model: object, name: str) -> None:
    if isinstance(model, MaskRCNN):
        raise ConfigError(
            f"{name} is a detector, which cannot be exported whole: how many boxes there are depends on the image, and "
            "their suppression, the pooling of regions and the pasting of masks are no operations of the targets. "
            "vmamba.heads.mask_rcnn.DensePart(model), its backbone, pyramid and proposals' head, can be"
        )


def _bare(model: VSSM | Segmenter, name: str, weights: str, warning: str | None) -> Source:
    """Weights that do not say how they were trained: ImageNet's preprocessing and, for 1000 classes, its names."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    _refuse_detector(model, name)
    count, channels = model.num_classes, model.config.in_chans
    if count < 1:
        raise ConfigError(f"{name} has no head (num_classes={count}), so there are no logits to export")
    mean, std = (
        tuple(values if channels == 3 else (sum(values) / 3,) * channels)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    task: Task
    if isinstance(model, VSSM):
        preprocessing = Preprocessing(224, channels, mean, std, crop_pct=0.875)
        names = imagenet_class_names() if count == 1000 else tuple(str(i) for i in range(count))
        task = Classification(names, preprocessing)
    else:
        preprocessing = Preprocessing(model.config.imgsize, channels, mean, std, "bilinear")
        if count == 150 and channels == 3:
            task = replace(ade20k_task(), preprocessing=preprocessing)
        else:
            classes = PixelClasses.of([f"class {i}" for i in range(count)])
            task = Segmentation(classes, preprocessing, MaskFormat(count, max(count, IGNORE)))
    metadata = weight_metadata(name, model, task)
    pixels, images = _photographs(preprocessing)
    return Source(model, name, preprocessing, metadata, pixels, f"{name} with {weights}; {images}", task, warning)


def _run_images(path: Path, trained: Trained) -> tuple[Tensor, str]:
    """The first validation images of the run, if its data are here; else photographs."""
    task = trained.task
    try:
        data = trained_on(path)
        samples = None if data is None else task.reload(data, trained.weights_path).val
    except VMambaError:
        samples = None
    if samples is None or data is None or len(samples) == 0:
        return _photographs(trained.preprocessing)
    count = min(_IMAGES, len(samples))
    dataset = task.dataset(samples)
    pixels = task.inputs(task.collate([dataset[i] for i in range(count)]))
    if not isinstance(pixels, Tensor):  # images of different sizes
        return _photographs(trained.preprocessing)
    return pixels, f"{count} validation images of {data.dataset}"


def _photographs(preprocessing: Preprocessing) -> tuple[Tensor, str]:
    from sklearn.datasets import load_sample_images

    transform = preprocessing.eval_transform()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    return torch.stack([transform(image) for image in photographs]), f"scikit-learn's {len(photographs)} photographs"
