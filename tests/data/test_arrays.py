"""Images of many channels and of full depth: how they are read, transformed, learnt and asked about."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data import Augmentation, DataConfig, Preprocessing, load_splits
from vmamba.data.reading.arrays import array_fault, channel_statistics, preview, read_pixels
from vmamba.errors import ConfigError, DataError


def ramp(*shape: int, dtype: Any = np.float32) -> Any:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_lie_either_way(tmp_path: Path, dtype: Any) -> None:
    array = ramp(4, 6, 5, dtype=dtype)
    np.save(tmp_path / "last.npy", array)
    np.save(tmp_path / "first.npy", np.moveaxis(array, -1, 0))
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    for name in ("last", "first"):
        pixels = read_pixels(tmp_path / f"{name}.npy", 5)
        assert (pixels.dtype, pixels.shape) == (np.float32, (5, 4, 6))
        np.testing.assert_allclose(pixels, np.moveaxis(array, -1, 0) / scale, rtol=1e-6)
    np.save(tmp_path / "grey.npy", array[..., 0])
    np.testing.assert_allclose(read_pixels(tmp_path / "grey.npy", 1)[0], array[..., 0] / scale, rtol=1e-6)


def test_sixteen_bits_and_pages_keep_their_depth(tmp_path: Path) -> None:
    deep = (ramp(4, 6) * 2000 + 7).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_pixels(tmp_path / "deep.png", 1)[0], deep / 65535, rtol=1e-6)
    pages = [Image.fromarray(deep + page) for page in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    read = read_pixels(tmp_path / "pages.tif", 5)
    np.testing.assert_allclose(read, np.stack([deep + page for page in range(5)]) / 65535, rtol=1e-6)
    floats = [Image.fromarray(ramp(4, 6) - page) for page in range(2)]
    floats[0].save(tmp_path / "floats.tiff", save_all=True, append_images=floats[1:])
    np.testing.assert_array_equal(read_pixels(tmp_path / "floats.tiff", 2)[1], ramp(4, 6) - 1)
    colour = ramp(4, 6, 3, dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.png")
    np.testing.assert_allclose(read_pixels(tmp_path / "c.png", 3), np.moveaxis(colour, -1, 0) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (ramp(4, 6, 4), r"its array is \(4, 6, 4\), want \(H, W, 5\) or \(5, H, W\) for in_chans=5"),
        (ramp(4, 6), r"its array is \(4, 6\)"),
        (ramp(4, 6, 5, dtype=np.int64), "it holds int64; want 8 or 16 bits, or floats"),
        (ramp(4, 6, 5) * np.nan, "values that are not finite"),
        (ramp(4, 6, 5).astype(complex), "it holds complex128"),
        (ramp(0, 6, 5), r"its array is \(0, 6, 5\)"),
    ],
)
def test_what_is_no_such_image(tmp_path: Path, array: Any, words: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    with pytest.raises(DataError, match=words):
        read_pixels(path, 5)
    assert array_fault(path, 5)
    path.write_bytes(path.read_bytes()[:-3])
    assert array_fault(path, 5)
    path.write_bytes(b"junk")
    assert array_fault(path, 5)
    assert array_fault(tmp_path / "none.npy", 5) == "no such file"


def test_pages_of_several_sizes_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(ramp(4, 6)), Image.fromarray(ramp(4, 5))]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="its 2 pages differ in size or depth"):
        read_pixels(tmp_path / "x.tif", 2)


def test_statistics_are_numpys(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    arrays = [generator.rand(4, 6, 2).astype(np.float32) for _ in range(5)]
    paths = [tmp_path / f"{i}.npy" for i in range(6)]
    for path, array in zip(paths[1:], arrays, strict=True):
        np.save(path, array)
    mean, std = channel_statistics(paths, 2)  # the first is not there
    np.testing.assert_allclose(mean, np.mean(arrays, axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, np.std(arrays, axis=(0, 1, 2)), atol=1e-6)
    np.save(paths[0], np.zeros((4, 6, 2)))
    with pytest.raises(DataError, match="channel 0 of 2 is the same everywhere in 1 images"):
        channel_statistics(paths[:1], 2)


def five(**fields: Any) -> Preprocessing:
    return Preprocessing(8, 5, (0.5,) * 5, (0.25,) * 5, full_depth=True, **fields)


def test_evaluation_resizes_and_crops_the_centre() -> None:
    pixels = np.zeros((5, 16, 24), np.float32)
    pixels[:, 4:12, 8:16] = 1.0
    exact = five(interpolation="nearest", crop_pct=0.5).eval_transform()(pixels)
    assert exact.shape == (5, 8, 8)
    assert exact.min() == exact.max() == 2.0
    flat = five().eval_transform()(np.full((5, 9, 31), 0.75, np.float32))
    torch.testing.assert_close(flat, torch.ones(5, 8, 8))
    assert five(interpolation="bilinear").eval_transform()(ramp(5, 4, 3)).shape == (5, 8, 8)


def test_training_crops_flips_and_erases_but_never_colours() -> None:
    # Columns by their number: a crop keeps them rising, a flip falling.
    pixels = np.broadcast_to(np.arange(32, dtype=np.float32), (5, 32, 32)).copy()
    transform = five().train_transform(Augmentation((0.2, 0.9), (0.8, 1.25), 0.5))
    random.seed(0)
    seen = [transform(pixels) for _ in range(40)]
    rising = [bool((image[0, 0].diff() > 0).all()) for image in seen]
    falling = [bool((image[0, 0].diff() < 0).all()) for image in seen]
    assert all(a != b for a, b in zip(rising, falling, strict=True))
    assert 8 < sum(falling) < 32
    assert len({round(float(image[0, 0, 0]), 3) for image in seen}) > 30
    random.seed(0)
    assert torch.equal(transform(pixels), seen[0])
    erased = five().train_transform(Augmentation(random_erasing=1.0))(np.full((5, 8, 8), 0.5, np.float32))
    assert 0 < (erased != 0).float().mean() < 0.8
    for wrong in (Augmentation(color_jitter=0.4), Augmentation(auto_augment="rand-m9-mstd0.5-inc1")):
        with pytest.raises(ConfigError, match=r"8-bit RGB, and these images have 5 channel\(s\).*leave it out"):
            five().train_transform(wrong)


def test_preprocessing_of_old_files_is_as_ever() -> None:
    plain = Preprocessing(8, 3, (0.5,) * 3, (0.5,) * 3)
    assert "full_depth" not in plain.to_dict()
    assert Preprocessing.from_dict(five().to_dict()) == five()
    with pytest.raises(ConfigError, match="in_chans=0"):
        Preprocessing(8, 0, (), (), full_depth=True)


def tree(root: Path, count: int = 12) -> Path:
    """Two classes of five channels; the fourth alone tells them apart."""
    generator = np.random.RandomState(0)
    for label in range(2):
        (root / "ab"[label]).mkdir(parents=True)
        for i in range(count):
            array = generator.rand(8, 10, 5).astype(np.float32) * 0.5
            array[..., 3] += label
            np.save(root / "ab"[label] / f"{i:02d}.npy", array)
    return root


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    root = tree(tmp_path)
    config = DataConfig("folder", root, in_chans=5, image_size=8)
    assert config.full_depth
    assert config.defaults.augmentation.color_jitter == 0.0
    splits = load_splits(config)
    pixels, _ = splits.train[0]
    assert pixels.shape == (5, 8, 10)
    p = splits.preprocessing
    assert p.full_depth
    assert (p.mean[3] > p.mean[0] + 0.3, p.std[3] > 2 * p.std[0]) == (True, True)
    given = load_splits(DataConfig("folder", root, in_chans=5, mean=(0.0,) * 5, std=(1.0,) * 5)).preprocessing
    assert (given.mean, given.std) == ((0.0,) * 5, (1.0,) * 5)
    np.save(root / "a" / "00.npy", ramp(4, 4, 2))
    with pytest.raises(DataError, match=r"1 unreadable image.*00\.npy: its array is \(4, 4, 2\), want"):
        load_splits(config)
    assert len(load_splits(DataConfig("folder", root, in_chans=5, unreadable="skip")).skipped) == 1
    assert preview(root / "a" / "01.npy").size == (10, 8)
    with pytest.raises(ConfigError, match='full_depth is for dataset="folder"'):
        DataConfig("digits", full_depth=True)
    with pytest.raises(ConfigError, match="give both, or neither"):
        DataConfig(mean=(0.5,))


def test_five_channels_are_learnt_measured_and_predicted(tmp_path: Path) -> None:
    from vmamba.evaluate.measure import EvaluateConfig, evaluate
    from vmamba.evaluate.predict import PredictConfig, predict
    from vmamba.tasks.trained import load_trained
    from vmamba.train.run import train
    from vmamba.train.settings.config import TrainConfig

    root = tree(tmp_path / "images")
    result = train(
        TrainConfig(
            model_options={"dims": [8, 16], "depths": [1, 1]},
            data=DataConfig("folder", root, image_size=8, in_chans=5),
            epochs=4,
            batch_size=4,
            lr=1e-2,
            num_workers=0,
            device="cpu",
            output=tmp_path / "run",
        )
    )
    assert result.test is not None
    assert result.test.figures["accuracy"] == 1.0
    trained = load_trained(tmp_path / "run")
    assert (trained.preprocessing.in_chans, trained.preprocessing.full_depth) == (5, True)
    assert evaluate(EvaluateConfig(tmp_path / "run", device="cpu")).scores.figures["accuracy"] == 1.0
    answers = predict(PredictConfig((root,), tmp_path / "run", output=tmp_path / "out", truth="folder", device="cpu"))
    assert len(answers) == 24
    assert all(answer.right for answer in answers)
