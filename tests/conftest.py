"""What several test files share: a small tree of images and one tiny run trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def colour_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of class folders: 16×16 pictures of three colours, fifteen each."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.RandomState(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for i in range(15):
            pixels = random.randint(0, 100, (16, 16, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def colour_run(colour_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a very small model trained on `colour_images` until it knows them."""
    from vmamba.data import DataConfig
    from vmamba.tasks.train import TrainConfig, train

    run = tmp_path_factory.mktemp("colour_run") / "run"
    train(
        TrainConfig(
            model_options={"dims": [8, 16], "depths": [1, 1]},
            data=DataConfig("folder", colour_images, image_size=16),
            epochs=6,
            batch_size=9,
            lr=1e-2,
            num_workers=0,
            device="cpu",
            output=run,
        )
    )
    return run
