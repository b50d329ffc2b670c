"""A very small segmenter, and pictures that it can learn: what is red is class 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vmamba.data import DataConfig
from vmamba.train.settings.config import TrainConfig

TINY: dict[str, Any] = {
    "dims": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "decode_head": {"channels": 8},
    "auxiliary_head": {"channels": 8},
}


def red_images(root: Path, count: int = 12, size: int = 40, wider: int = 2) -> Path:
    """A folder of images and masks: a red block on noise; a third are square, the others wider."""
    random = np.random.RandomState(0)
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        labels = np.zeros((size, size + wider * (index % 3)), np.uint8)
        top, left = random.randint(0, size // 2, 2)
        labels[top : top + size // 2, left : left + size // 2] = 1
        pixels = random.randint(0, 120, (*labels.shape, 3))
        pixels[..., 0] += 130 * labels
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"images/{index:02d}.png")
        Image.fromarray(labels).save(root / f"masks/{index:02d}.png")
    return root


def config(root: Path, output: Path, **fields: Any) -> TrainConfig:
    """A training of a second or two."""
    values: dict[str, Any] = {
        "task": "segmentation",
        "model_options": TINY,
        "data": DataConfig("masks", root, image_size=32),
        "epochs": 3,
        "epoch_updates": 6,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_epochs": 0,
        "ema_decay": 0.0,
        "num_workers": 0,
        "device": "cpu",
        "output": output,
    }
    return TrainConfig(**{**values, **fields})
