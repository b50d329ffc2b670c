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
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (61, 40), (7, 90)])
def test_equal_to_timm(size: tuple[int, int], channels: int, training: bool, interpolation: str) -> None:
    mean, std = ((0.3,), (0.4,)) if channels == 1 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    random_parts = {"is_training": True, "scale": (0.5, 1.0), "hflip": 0.5, "re_prob": 0.5, "color_jitter": None}
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
