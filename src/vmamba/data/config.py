"""Which images to use, as one typed value, and the table of data sets that it may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Literal

from vmamba.data.preprocessing import Augmentation, Preprocessing
from vmamba.data.reading.images import mode_of
from vmamba.errors import ConfigError, nearest
from vmamba.given import remembers_given


@dataclass(frozen=True)
class DatasetDefaults:
    """One row of the table of data sets: what holds where the configuration says nothing else."""

    summary: str
    image_size: int | None  # None: fixed by the data set, not a square
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    augmentation: Augmentation
    needs_dir: bool = False
    in_memory: bool = True


#: Every data set by name; `load_splits` knows how to load each.
DATASETS: Mapping[str, DatasetDefaults] = {
    "digits": DatasetDefaults(
        summary="1,797 handwritten digits, 8×8 grey, from scikit-learn; nothing to download",
        image_size=32,
        in_chans=1,
        mean=(0.305,),
        std=(0.350,),
        interpolation="bicubic",
        crop_pct=1.0,
        augmentation=Augmentation((0.7, 1.0), (0.8, 1.25), 0.0, 0.0, "none", 0.0, 0.0),
    ),
    "fashion-mnist": DatasetDefaults(
        summary="70,000 pictures of clothing, 28×28 grey; a local directory, or downloaded by torchvision",
        image_size=32,
        in_chans=1,
        mean=(0.286,),
        std=(0.340,),
        interpolation="bicubic",
        crop_pct=1.0,
        augmentation=Augmentation((1.0, 1.0), (1.0, 1.0), "alternate", 0.0, "none", 0.0, 1.0),
    ),
    "folder": DatasetDefaults(
        summary="a tree of class folders, with or without train/ val/ test/ above them",
        image_size=224,
        in_chans=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
        crop_pct=0.875,
        augmentation=Augmentation((0.35, 1.0), (0.75, 4 / 3), 0.5, 0.4, "none", 0.0, 0.0),
        needs_dir=True,
        in_memory=False,
    ),
    "shards": DatasetDefaults(
        summary="train-*.tar, val-*.tar and maybe test-*.tar with KEY.jpg and KEY.cls or KEY.json, as webdataset's",
        image_size=224,
        in_chans=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
        crop_pct=0.875,
        augmentation=Augmentation((0.35, 1.0), (0.75, 4 / 3), 0.5, 0.4, "none", 0.0, 0.0),
        needs_dir=True,
        in_memory=False,
    ),
    "masks": DatasetDefaults(
        summary="for segmentation: images/ and masks/, files paired by name, with or without train/ val/ test/",
        image_size=512,
        in_chans=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop_pct=1.0,
        augmentation=Augmentation((1.0, 1.0), (1.0, 1.0), 0.5, 1.0, "none", 0.0, 0.0),
        needs_dir=True,
        in_memory=False,
    ),
    "coco": DatasetDefaults(
        summary="for detection: annotations/instances_*.json and folders of images, in COCO's format",
        image_size=800,
        in_chans=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop_pct=1.0,
        augmentation=Augmentation((1.0, 1.0), (1.0, 1.0), 0.5, 0.0, "none", 0.0, 0.0),
        needs_dir=True,
        in_memory=False,
    ),
    "shapes": DatasetDefaults(
        summary="for segmentation and detection, generated: squares, discs and triangles on textured noise, 256×256",
        image_size=256,
        in_chans=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        crop_pct=1.0,
        augmentation=Augmentation((1.0, 1.0), (1.0, 1.0), 0.5, 0.0, "none", 0.0, 0.0),
    ),
    "marks": DatasetDefaults(
        summary="generated: do the marks at both ends of a wide, noisy image share a colour?",
        image_size=None,
        in_chans=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="nearest",
        crop_pct=1.0,
        augmentation=Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "none", 0.0, 0.0),
    ),
}


@remembers_given
@dataclass(frozen=True)
class DataConfig:
    """Which images to use and how to read them.

    Attributes:
        dataset: digits, fashion-mnist, folder (any tree of class folders), shards (tar archives) or marks (generated,
            needs long range); for segmentation masks (images/ and masks/), for detection coco
            (annotations/ and images), for both shapes (generated). By default the task's
            own.
        data_dir: Where the images lie; needed by folder, shards, masks and coco, optional for fashion-mnist.
        image_size: Side of the square that the model sees, in segmentation of the crops that it is trained on, pixels;
            by default the data set's own.
        in_chans: 1 (grey) or 3 (RGB), or with full_depth any number; by default the data set's own.
        train_images: Train on this many of the training images, evenly over the classes; by default all.
        seed: Seed of the split into train, validation and test. Apart from the training seed, so that no run's test
            image is another run's training image.
        unreadable: Whether an image that cannot be decoded stops the run, or is left out and counted. One that is met
            in training only is replaced by the next that can be read, so that batches keep their size.
        verify: Which files to decode once before anything else, so that broken ones are told at once: all (or true),
            none (or false), or a sample of 1,000, evenly spread.
        labels: CSV file that tells the labels of the images in data_dir, instead of their folders' names: columns file
            and label (several labels: "a;b", or one column of 0 and 1 for each class), and maybe split.
        full_depth: Whether to read a folder's images as arrays of any number of channels and with their whole depth:
            .npy files, TIFFs whose pages are channels, 16 bits. Taken for granted where in_chans is neither 1 nor 3.
        mean: Subtracted from each channel; with full_depth by default measured on 500 training images.
        std: Divided by, for each channel; as mean.
        folds: Parts that the images with masks are divided into, for as many runs; each has one as its validation
            images, the others to learn from.
        fold: Which of them, from 0.
    """

    given: InitVar[frozenset[str] | None] = field(default=None, kw_only=True)
    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = None
    in_chans: int | None = None
    train_images: int | None = None
    seed: int = 0
    unreadable: Literal["stop", "skip"] = "stop"
    verify: Literal["sample", "all", "none"] | bool = "sample"
    labels: Path | None = None
    full_depth: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    folds: int | None = None
    fold: int = 0

    def __post_init__(self, given: frozenset[str] | None) -> None:
        if self.dataset not in DATASETS:
            if Path(self.dataset).is_dir():
                hint = f'; for a directory give dataset="folder" and data_dir="{self.dataset}"'
            else:
                hint = nearest(self.dataset, DATASETS)
            raise ConfigError(f"dataset={self.dataset!r} is unknown; legal: {', '.join(DATASETS)}{hint}")
        if self.data_dir is None and self.defaults.needs_dir:
            what = {
                "shards": "archives",
                "masks": "folders images/ and masks/",
                "coco": "folder annotations/ and the folders of images",
            }.get(self.dataset, "class folders")
            raise ConfigError(f'dataset="{self.dataset}" needs data_dir: the directory that holds the {what}')
        if self.data_dir is not None and self.dataset in ("digits", "marks", "shapes"):
            raise ConfigError(
                f'dataset="{self.dataset}" comes with the package and has no data_dir (given {self.data_dir}); '
                'for your own images give dataset="folder"'
            )
        if self.labels is not None and self.dataset != "folder":
            raise ConfigError(f'labels={self.labels}: dataset="{self.dataset}" brings its own; give dataset="folder"')
        if self.image_size is not None and self.defaults.image_size is None:
            raise ConfigError(f'dataset="{self.dataset}" has images of one size only; leave image_size out')
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size={self.image_size}: want a number of pixels, 1 or more")
        of_files = self.dataset in ("folder", "masks")
        if self.in_chans not in (None, 1, 3) and of_files and (self.in_chans or 0) > 0:
            object.__setattr__(self, "full_depth", True)
        if self.full_depth and not of_files:
            raise ConfigError(f'full_depth is for dataset="folder" or "masks"; "{self.dataset}" has 8 bits')
        if self.in_chans is not None and not self.full_depth:
            mode_of(self.in_chans)
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"mean={self.mean} and std={self.std}: give both, or neither")
        if self.train_images is not None and self.train_images < 1:
            raise ConfigError(f"train_images={self.train_images}: want a number of images, 1 or more")
        if self.folds is not None and self.dataset != "masks":
            raise ConfigError(f'folds={self.folds} is for dataset="masks"; leave it out for "{self.dataset}"')
        if (self.folds is not None and self.folds < 2) or not 0 <= self.fold < (self.folds or 1):
            raise ConfigError(
                f"folds={self.folds}, fold={self.fold}: want two folds or more, and fold below their number"
            )
        if self.seed < 0:
            raise ConfigError(f"data seed={self.seed}: want 0 or more")
        if self.unreadable not in ("stop", "skip"):
            raise ConfigError(f"unreadable={self.unreadable!r}: want 'stop' or 'skip'")
        if isinstance(self.verify, bool):  # what it was before there were samples
            object.__setattr__(self, "verify", "all" if self.verify else "none")
        if self.verify not in ("sample", "all", "none"):
            raise ConfigError(f"verify={self.verify!r}: want sample, all or none")

    @property
    def defaults(self) -> DatasetDefaults:
        """The data set's row of the table; changes of colour suit 8 bits alone."""
        row = DATASETS[self.dataset]
        return replace(row, augmentation=replace(row.augmentation, color_jitter=0.0)) if self.full_depth else row


def preprocessing_for(
    config: DataConfig,
    fixed_size: tuple[int, int] | None = None,
    measured: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]] | None = None,
) -> Preprocessing:
    """The data set's preprocessing, with what ``config`` asks for instead.

    Args:
        config: which.
        fixed_size: height and width of a data set without an image size of its own in the table.
        measured: gives mean and deviation of images of full depth, where ``config`` does not.
    """
    row = config.defaults
    size = config.image_size or row.image_size or fixed_size
    assert size is not None
    if config.full_depth:
        channels = config.in_chans or row.in_chans
        if config.mean is not None and config.std is not None:
            mean, std = config.mean, config.std
        else:
            assert measured is not None
            mean, std = measured()
        return Preprocessing(size, channels, mean, std, row.interpolation, row.crop_pct, full_depth=True)
    preprocessing = Preprocessing(
        size, row.in_chans, row.mean, row.std, interpolation=row.interpolation, crop_pct=row.crop_pct
    )
    if config.in_chans is not None and config.in_chans != row.in_chans:
        # One channel repeated, or three averaged.
        def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
            return values * 3 if config.in_chans == 3 else (round(sum(values) / len(values), 4),)

        preprocessing = replace(preprocessing, in_chans=config.in_chans, mean=adapt(row.mean), std=adapt(row.std))
    if config.mean is not None and config.std is not None:
        preprocessing = replace(preprocessing, mean=config.mean, std=config.std)
    return preprocessing
