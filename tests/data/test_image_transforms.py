"""The quick links of the transforms give what timm's and torchvision's own give, bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from vmamba.data import Augmentation, Preprocessing
from vmamba.data.image_transforms import CropAndResize, ToNormalizedTensor, quickened


def image(height: int, width: int, channels: int) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (61, 40), (7, 90)])
def test_equal_to_timm(
    size: tuple[int, int], channels: int, scale: tuple[float, float], training: bool, interpolation: str
) -> None:
    mean, std = ((0.3,), (0.4,)) if channels == 1 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if scale[0] < 1.0:
        random_parts = {"is_training": True, "scale": scale, "hflip": 0.5, "re_prob": 0.5, "color_jitter": None}
    else:  # nothing after such a crop asks for Python's random numbers, which timm draws for it all the same
        random_parts = {"is_training": True, "scale": scale, "ratio": scale, "hflip": 0.5, "color_jitter": None}
    chain = create_transform(
        input_size=(channels, 32, 32),
        interpolation=interpolation,
        mean=mean,
        std=std,
        **(random_parts if training else {}),
    )
    quick = quickened(chain)
    assert any(isinstance(link, ToNormalizedTensor) for link in quick.transforms)
    assert any(isinstance(link, CropAndResize) for link in quick.transforms) == training
    picture = image(*size, channels)
    for seed in range(10):
        found = []
        for transform in (chain, quick):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            found.append(transform(picture))
        assert torch.equal(*found)
        assert found[1].is_contiguous()
        assert found[0].dtype == found[1].dtype


def test_other_chains_stay() -> None:
    """A random choice of interpolations, and what is no part of timm's chain."""
    chain = create_transform(input_size=(3, 32, 32), is_training=True, interpolation="random", no_aug=False)
    assert not any(isinstance(link, CropAndResize) for link in quickened(chain).transforms)
    assert quickened(Compose([abs])).transforms == [abs]


def test_the_preprocessing_uses_them() -> None:
    preprocessing = Preprocessing(32, 1, (0.3,), (0.4,))
    assert "ToNormalizedTensor" in repr(preprocessing.eval_transform())
    assert "ToNormalizedTensor" in repr(preprocessing.train_transform(Augmentation(crop_scale=(0.5, 1.0))))


def marked(transform: object, pixels: object) -> tuple[int, int]:
    """Where the one bright pixel is, in a dark image."""
    bright = transform(pixels)[0] > 0.5  # type: ignore[operator]
    (place,) = bright.nonzero().tolist()
    return place[0], place[1]


@pytest.mark.parametrize("in_chans", [1, 5])
def test_shifted_by_up_to_so_many_pixels(in_chans: int) -> None:
    full_depth = in_chans > 3
    preprocessing = Preprocessing(16, in_chans, (0.0,) * in_chans, (1.0,) * in_chans, full_depth=full_depth)
    pixels = np.zeros((16, 16), np.float32 if full_depth else np.uint8)
    pixels[3, 12] = 1.0 if full_depth else 255
    image = np.broadcast_to(pixels, (in_chans, 16, 16)).copy() if full_depth else Image.fromarray(pixels)
    random.seed(0)
    transform = preprocessing.train_transform(Augmentation(shift=2.0))
    places = [marked(transform, image) for _ in range(300)]
    assert {row for row, _ in places} == {1, 2, 3, 4, 5}
    assert {column for _, column in places} == {10, 11, 12, 13, 14}
    assert len(set(places)) == 25
    middle = sum(row == 3 for row, _ in places)
    assert middle > sum(row == 1 for row, _ in places)  # numbers up to 2, rounded: 2 itself is half as frequent
    transform = preprocessing.train_transform(Augmentation(shift=0.4))
    assert {marked(transform, image) for _ in range(30)} == {(3, 12)}


def test_what_is_moved_out_is_gone_and_what_comes_in_is_black() -> None:
    white = Image.fromarray(np.full((8, 8), 255, np.uint8))
    transform = Preprocessing(8, 1, (0.0,), (1.0,)).train_transform(Augmentation(shift=1.0))
    random.seed(0)
    seen = {tuple(transform(white)[0].sum(0).int().tolist()) for _ in range(50)}
    assert (0, 8, 8, 8, 8, 8, 8, 8) in seen
    assert (7, 7, 7, 7, 7, 7, 7, 0) in seen
    assert len(seen) == 6  # three ways each, and rows that come in above and below look alike from here
