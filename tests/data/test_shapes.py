"""The generated shapes: the same everywhere, each by itself, and masks, boxes and labels that agree."""

import hashlib
from dataclasses import fields

import numpy as np
import pytest

from vmamba.data.datasets import shapes
from vmamba.data.datasets.shapes import CLASSES, MOST, Shapes, boxes_of, make_sample


def test_pixels_are_the_same_on_every_machine() -> None:
    sample = make_sample("train", 0, 7)
    digest = hashlib.sha256(sample.image.tobytes() + sample.semantic.tobytes() + sample.boxes.tobytes()).hexdigest()
    assert digest[:16] == "a177c76649fa90a3"


def test_a_sample_needs_no_other() -> None:
    every = [sample.image for sample in (Shapes("val", 3, 4)[i] for i in range(4))]
    assert (Shapes("val", 3)[2].image == every[2]).all()
    assert len({image.tobytes() for image in every}) == 4


def test_parts_and_seeds_share_no_image() -> None:
    seen = {make_sample(part, seed, i).image.tobytes()
            for part in ("train", "val", "test") for seed in (0, 1) for i in range(5)}  # fmt: skip
    assert len(seen) == 30


@pytest.mark.parametrize("index", range(20))
def test_what_is_known_of_a_sample_agrees(index: int) -> None:
    sample = make_sample("train", 0, index)
    assert sample.image.shape == (256, 256, 3)
    assert sample.image.dtype == sample.semantic.dtype == np.uint8
    assert 1 <= len(sample.masks) == len(sample.boxes) == len(sample.labels) <= MOST
    assert set(sample.labels.tolist()) <= set(range(1, len(CLASSES)))
    assert sample.masks.sum(0).max() == 1, "a pixel shows one shape at most"
    painted = (sample.masks * sample.labels[:, None, None]).sum(0)
    assert (painted == sample.semantic).all()
    for mask, (x1, y1, x2, y2) in zip(sample.masks, sample.boxes.tolist(), strict=True):
        assert mask.sum() >= 64
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any()
        assert mask[y2 - 1].any()
        assert mask[:, x1].any()
        assert mask[:, x2 - 1].any()


def test_all_classes_are_as_common() -> None:
    counts = np.bincount(np.concatenate([make_sample("train", 0, i).labels for i in range(120)]), minlength=4)
    assert counts[0] == 0
    assert counts[1:].min() > 0.25 * counts.sum()


def test_another_size() -> None:
    sample = make_sample("test", 0, 0, size=64)
    assert sample.image.shape == (64, 64, 3)
    assert sample.masks.shape[1:] == (64, 64)


def test_boxes_end_beyond_the_last_pixel() -> None:
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 1:3, 2:5] = True
    assert boxes_of(mask).tolist() == [[2, 1, 5, 3]]


def test_there_is_an_end() -> None:
    assert len([sample.labels for sample in Shapes("val", count=3)]) == 3


def test_what_is_kept_comes_back_as_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "KEPT", 2 * 4 * 64**2)  # two samples
    images = Shapes("train", 5, size=64)
    wanted = [shapes.make_sample("train", 5, index, 64) for index in range(3)]
    for _ in range(2):
        for index in (2, 0, 1):
            sample = images[index]
            for field in fields(sample):
                got, want = getattr(sample, field.name), getattr(wanted[index], field.name)
                assert got.dtype == want.dtype
                np.testing.assert_array_equal(got, want)
                got[...] = 0  # the caller's own
    made: list[int] = []
    monkeypatch.setattr(shapes, "make_sample", lambda *values: (made.append(values[2]), wanted[values[2]])[1])
    for index in range(3):
        images[index]
    assert made == [1]
