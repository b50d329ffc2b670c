"""Flips in turns: each image is seen one way round in one epoch and the other way in the next, by every transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data import Augmentation, Preprocessing
from vmamba.data.detection.sets import Objects
from vmamba.data.detection.transforms import DetectionAugmentation
from vmamba.data.detection.transforms import TrainTransform as DetectionTransform
from vmamba.data.mirroring import take_turn
from vmamba.data.segmentation.transforms import Resizing, SegmentationAugmentation
from vmamba.data.segmentation.transforms import TrainTransform as SegmentationTransform
from vmamba.errors import ConfigError
from vmamba.train.loop.sampler import SeededSamples

IN_TURNS = Augmentation(hflip="alternate")
PLAIN = Preprocessing(16, 3, (0.0,) * 3, (1.0,) * 3, "nearest")

#: Grows from left to right.
RAMP = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], (16, 16, 3)).copy()


def classified() -> torch.Tensor:
    transform = PLAIN.train_transform(IN_TURNS)
    return transform(Image.fromarray(RAMP))


def of_full_depth() -> torch.Tensor:
    deep = Preprocessing(16, 5, (0.0,) * 5, (1.0,) * 5, full_depth=True)
    pixels = np.broadcast_to(RAMP[..., 0].astype(np.float32), (5, 16, 16)).copy()
    return deep.train_transform(IN_TURNS)(pixels)


def segmented() -> torch.Tensor:
    augmentation = SegmentationAugmentation.of(IN_TURNS, (1.0, 1.0), 1.0, PLAIN)
    pixels, labels = SegmentationTransform(PLAIN, Resizing(), augmentation, 255)(Image.fromarray(RAMP), RAMP[..., 0])
    assert torch.equal((pixels[0] * 255).round().long(), labels)
    return pixels


def detected() -> torch.Tensor:
    augmentation = DetectionAugmentation.of(IN_TURNS, (16, 16), (), False)
    objects = Objects(np.array([[0, 0, 8, 8]], np.float32), np.array([1]), RAMP[None, ..., 0] < 100)
    return DetectionTransform(PLAIN, augmentation)(Image.fromarray(RAMP), objects)[0]


@pytest.fixture(autouse=True)
def _no_turns_afterwards() -> Iterator[None]:
    yield
    take_turn(None)


def is_mirrored(image: torch.Tensor) -> bool:
    rises, falls = bool((image[0, 0].diff() > 0).all()), bool((image[0, 0].diff() < 0).all())
    assert rises != falls
    return falls


@pytest.mark.parametrize("transformed", [classified, of_full_depth, segmented, detected])
def test_every_transform_takes_its_turn(transformed: Callable[[], torch.Tensor]) -> None:
    for turn in (True, False, True):
        take_turn(turn)
        assert is_mirrored(transformed()) == turn
    take_turn(None)  # by chance, where nobody counts epochs
    torch.manual_seed(0)
    assert 0 < sum(is_mirrored(transformed()) for _ in range(20)) < 20


class Ramps:
    """A training set of one picture."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        return classified()


def test_an_image_is_mirrored_in_every_other_epoch() -> None:
    samples = SeededSamples(Ramps(), seed=3)
    first, second, third = (
        [is_mirrored(one) for one in samples.__getitems__([(epoch, i) for i in range(200)])] for epoch in range(3)
    )
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert first == third
    assert 70 < sum(first) < 130
    other = SeededSamples(Ramps(), seed=4)
    assert [is_mirrored(other[0, i]) for i in range(200)] != first
    torch.manual_seed(0)  # nothing is left of the last sample's turn
    assert 0 < sum(is_mirrored(classified()) for _ in range(20)) < 20


def test_other_words_and_numbers() -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.hflip=1\.5: a probability, want 0 to 1, or 'alternate'"):
        Augmentation(hflip=1.5)
    with pytest.raises(
        ConfigError, match=r"augmentation\.hflip='sometimes': a probability, want 0 to 1, or 'alternate'"
    ):
        Augmentation(hflip="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"augmentation\.random_erasing='alternate': a probability, want 0 to 1"):
        Augmentation(random_erasing="alternate")  # type: ignore[arg-type]
