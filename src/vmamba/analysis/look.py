"""What `vmamba scanmap`, `vmamba cam` and `vmamba erf` do: read a model and images, analyse, draw, write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vmamba.analysis.cam import class_map
from vmamba.analysis.classes import Classes
from vmamba.analysis.erf import ReceptiveField, receptive_field
from vmamba.analysis.figures import Pixels, class_map_figure, receptive_fields_figure, scan_map_figure
from vmamba.analysis.networks import NetworkName
from vmamba.analysis.scan_map import scan_map
from vmamba.data import Preprocessing, read_image
from vmamba.data.reading.arrays import read_pixels
from vmamba.errors import ConfigError
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.predict import find_images
from vmamba.output import check_writable_file, write_json
from vmamba.tasks.segmentation.task import Segmentation
from vmamba.tasks.trained import Trained, load_trained

if TYPE_CHECKING:
    from rich.console import Console


#: Pixels a side that a segmenter is shown, at least.
_SIDE = 256


@dataclass(frozen=True)
class ScanMapConfig:
    """Which row of which layer's implicit attention.

    Attributes:
        image: Image file.
        weights: Run folder, weight file, or a model's name for its released weights.
        query: Row and column as "40,95", pixels of the image as the model sees it; by default its middle.
        stage: Of the layer, from 0; negative ones count from the last.
        block: Of the layer within its stage, as stage.
        image_size: Side of the image as the model sees it, pixels; by default its own, of a segmenter 256 or more.
        output: PNG file.
    """

    image: Path
    weights: Path
    query: str | None = None
    stage: int = -2
    block: int = -1
    image_size: int | None = None
    output: Path = Path("scanmap.png")


@dataclass(frozen=True)
class CamConfig:
    """Which class's map.

    Attributes:
        image: Image file.
        weights: Run folder, weight file, or a model's name for its released weights.
        label: The class, by name or index; by default the likeliest, of a segmenter the one of most places beside the
            background.
        stage: Whose last map, from 0; negative ones count from the last.
        image_size: Side of the image as the model sees it, pixels; by default its own, of a segmenter 256 or more.
        output: PNG file.
    """

    image: Path
    weights: Path
    label: str | None = None
    stage: int = -1
    image_size: int | None = None
    output: Path = Path("cam.png")


@dataclass(frozen=True)
class ErfConfig:
    """Whose receptive fields.

    Attributes:
        models: Names of ours or timm's (fresh weights), with options as "resnet18(layers=[1,1,1,1])"; run folders and
            weight files (before training and after).
        images: Image files and folders to average over; by default noise.
        count: Images at most.
        image_size: Side of the images, pixels; by default a run's own, else 224.
        pretrained: Whether models that are given by name have their released weights.
        seed: Of fresh weights and noise.
        output: PNG file.
        json: File for the area ratios.
    """

    models: tuple[str, ...]
    images: tuple[Path, ...] = ()
    count: int = 16
    image_size: int | None = None
    pretrained: bool = False
    seed: int = 0
    output: Path = Path("erf.png")
    json: Path | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model given; name one of `vmamba models`, one of timm's, or a run's folder")
        if self.count < 1:
            raise ConfigError(f"count={self.count}: want a number of images, 1 or more")


def look_at_scan(config: ScanMapConfig, console: Console) -> None:
    """Draw one row of a layer's implicit attention.

    Raises:
        CheckpointError, DataError, OutputError: weights, image or place cannot be used.
        ConfigError: no such layer or pixel.
    """
    check_writable_file(config.output)
    trained, pixels, shown = _read(config.weights, config.image, config.image_size)
    found = scan_map(trained.model, pixels, _place(config.query, pixels), config.stage, config.block)
    where = f"stage {config.stage}, block {config.block}"
    title = (
        f"{trained.name}, {where}: what the place {found.query} of {_size(found.weights)} sees in {config.image.name}"
    )
    save_figure(scan_map_figure(found, shown, title), config.output)
    off = (found.reproduced() - found.output.to(found.weights.dtype)).abs().max() / found.output.abs().max()
    console.print(f"the row gives the layer's output again to {float(off):.1e}", markup=False)
    console.print(f"wrote {config.output}", soft_wrap=True, markup=False)


def look_at_class(config: CamConfig, console: Console) -> None:
    """Draw which places speak for a class.

    Raises:
        CheckpointError, DataError, OutputError: weights, image or place cannot be used.
        ConfigError: no such class or stage.
    """
    check_writable_file(config.output)
    trained, pixels, shown = _read(config.weights, config.image, config.image_size)
    classes = Classes.of(trained.task)
    label = None if config.label is None else classes.index(config.label)
    found = class_map(trained.model, pixels, label, config.stage, classes.background)
    name = classes.name(found.label)
    save_figure(class_map_figure(found, shown, name, f"{trained.name} on {config.image.name}"), config.output)
    console.print(f"{name}: logit {found.logit:.3f}", markup=False)
    console.print(f"wrote {config.output}", soft_wrap=True, markup=False)


def look_at_fields(config: ErfConfig, console: Console) -> list[ReceptiveField]:
    """Measure, print and draw receptive fields, of all models for the same images.

    Raises:
        CheckpointError, DataError, OutputError: weights, images or a place cannot be used.
        ConfigError: no such model.
    """
    from rich.table import Table

    for place in (config.output, config.json):
        if place is not None:
            check_writable_file(place)
    found = [field for name in config.models for field in _fields(name, config)]
    what = f"{found[0].images} images" if config.images else f"{found[0].images} images of noise"
    save_figure(receptive_fields_figure(found, f"Effective receptive fields, {what}"), config.output)
    table = Table(box=None, pad_edge=False, caption="Share of the image's area that holds so much of the influence.")
    table.add_column("model")
    table.add_column("parameters", justify="right")
    for share in found[0].areas():
        table.add_column(f"{100 * share:.0f} %", justify="right")
    for field in found:
        parameters = f"{(field.parameters or 0) / 1e6:.2f} M"
        table.add_row(field.name, parameters, *(f"{100 * area:.1f} %" for area in field.areas().values()))
    console.print(table)
    if config.json is not None:
        areas = [
            {
                "model": f.name,
                "parameters": f.parameters,
                "images": f.images,
                "areas": {str(k): v for k, v in f.areas().items()},
            }
            for f in found
        ]
        write_json(config.json, areas)
        console.print(f"wrote {config.json}", soft_wrap=True, markup=False)
    console.print(f"wrote {config.output}", soft_wrap=True, markup=False)
    return found


def _fields(name: str, config: ErfConfig) -> list[ReceptiveField]:
    """Of one of the models; of a run's two, before training and after."""
    torch.manual_seed(config.seed)
    if Path(name).exists():
        trained = load_trained(name)
        images = _images(config, trained.preprocessing)
        after = receptive_field(trained.model, images, f"{trained.name}, trained")
        fresh = trained.task.rebuild(trained.task.metadata(trained.model))
        return [receptive_field(fresh, images, f"{trained.name}, fresh"), after]
    size = config.image_size or 224
    usual = Preprocessing(size, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=0.875)
    given = NetworkName.parse(name)
    network = given.build(config.pretrained, size)
    shown = f"{given}, {'trained' if config.pretrained else 'fresh'}"
    try:
        return [receptive_field(network, _images(config, usual), shown)]
    except (RuntimeError, AssertionError) as error:  # it could be built, but not like this
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name!r} cannot be run on images of {size} pixels: {why}") from error


def _images(config: ErfConfig, preprocessing: Preprocessing) -> list[Tensor]:
    """Batches of one, as ``preprocessing`` makes them; or noise of the same size."""
    if not config.images:
        noise = torch.Generator().manual_seed(config.seed)
        shape = (1, preprocessing.in_chans, preprocessing.height, preprocessing.width)
        return [torch.randn(shape, generator=noise) for _ in range(config.count)]
    return [pixels_of(path, preprocessing)[None] for path in find_images(config.images)[: config.count]]


def pixels_of(path: Path, preprocessing: Preprocessing) -> Tensor:
    """An image file as the model's input ``(in_chans, H, W)``, whatever its task asks of whole images."""
    read = read_pixels if preprocessing.full_depth else read_image
    return preprocessing.eval_transform()(read(path, preprocessing.in_chans))


def viewed(trained: Trained, image_size: int | None = None) -> Preprocessing:
    """How an image is shown to a model that is looked into.

    Segmenters take any size, and a small one, such as that of the crops that they learnt from, would leave few places.

    Args:
        trained: the model.
        image_size: side in pixels; by default the model's own, of segmenters 256 or more.
    """
    p = trained.preprocessing
    if image_size is not None:
        return replace(p, image_size=image_size)
    factor = _SIDE / min(p.height, p.width)
    if not isinstance(trained.task, Segmentation) or factor <= 1:
        return p
    return replace(p, image_size=(round(p.height * factor), round(p.width * factor)))


def _read(weights: Path, image: Path, image_size: int | None) -> tuple[Trained, Tensor, Pixels]:
    """The model, the image as it takes it, and as it is drawn."""
    trained = load_trained(weights)
    preprocessing = viewed(trained, image_size)
    pixels = pixels_of(image, preprocessing)
    return trained, pixels, drawn(pixels, preprocessing)


def drawn(pixels: Tensor, preprocessing: Preprocessing) -> Pixels:
    """A model's input ``(in_chans, H, W)`` as people see it: in colour, or grey where it has not three channels."""
    p = preprocessing
    shown = pixels * torch.tensor(p.std)[:, None, None] + torch.tensor(p.mean)[:, None, None]
    shown = shown.clamp(0, 1).permute(1, 2, 0)
    values = shown.numpy() if p.in_chans == 3 else shown.mean(-1).numpy()
    return values.astype(np.float32)


def _place(query: str | None, pixels: Tensor) -> tuple[int, int]:
    if query is None:
        return pixels.shape[1] // 2, pixels.shape[2] // 2
    try:
        row, column = (int(part) for part in query.split(","))
    except ValueError:
        raise ConfigError(f"query={query!r}: want row and column in pixels, such as 40,95") from None
    return row, column


def _size(weights: Any) -> str:
    return f"{weights.shape[-2]}×{weights.shape[-1]}"
