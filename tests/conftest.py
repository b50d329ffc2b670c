"""What several test files share, and which tests run where nothing is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. Set before torch is imported, and so for the programs that tests start as well.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Leave the long tests out of a run that names no file, mark or word, and the endless ones of all but a run that
    names their mark; and have the GPU's kernels interpreted.
    """
    if "endless" not in config.option.markexpr:
        named = config.args_source is pytest.Config.ArgsSource.ARGS or config.option.markexpr or config.option.keyword
        chosen = f"({config.option.markexpr}) and " if config.option.markexpr else "" if named else "not long and "
        config.option.markexpr = f"{chosen}not endless"
    import torch

    if not torch.cuda.is_available():
        # Triton reads this when it is imported, and each kernel when it is defined, which collecting any test file can
        # cause: hence here.
        os.environ["TRITON_INTERPRET"] = "1"


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
    from vmamba.train.run import train
    from vmamba.train.settings.config import TrainConfig

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
