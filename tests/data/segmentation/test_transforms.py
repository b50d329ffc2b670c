"""Paired random changes: image and labels stay together; sizes are upstream's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data.preprocessing import Augmentation, Preprocessing
from vmamba.data.segmentation.transforms import (
    EvalTransform,
    Resizing,
    SegmentationAugmentation,
    TrainTransform,
    normalised,
    resized,
    to_tensor,
)
from vmamba.errors import ConfigError

PLAIN = Preprocessing(32, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


def pair(height: int = 64, width: int = 48) -> tuple[Image.Image, np.ndarray]:
    """Labels are where the image is red."""
    random = np.random.RandomState(0)
    labels = np.kron(random.randint(0, 2, (height // 16, width // 16)), np.ones((16, 16))).astype(np.uint16)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 200 * labels
    pixels[..., 1] = np.arange(width)
    return Image.fromarray(pixels), labels


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_image_and_labels_are_cropped_and_flipped_together(scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    transform = TrainTransform(PLAIN, Resizing(), SegmentationAugmentation(scale, 1.0, 0.5), 255)
    image, labels = pair()
    seen, wrong, known = set(), 0, 0
    for _ in range(12):
        pixels, target = transform(image, labels)
        assert pixels.shape == (3, 32, 32)
        assert target.shape == (32, 32)
        assert (pixels.dtype, target.dtype) == (torch.float32, torch.int64)
        inside = target != 255
        known += int(inside.sum())
        wrong += int(((pixels[0] > 100 / 255) != (target == 1))[inside].sum())
        seen.add(pixels.numpy().tobytes())
    assert wrong <= 0.06 * known  # of resized images, along the borders
    assert wrong == 0 or scale != (1.0, 1.0)
    assert len(seen) > 6


def test_a_small_image_is_filled_up_and_the_rest_ignored() -> None:
    transform = TrainTransform(PLAIN, Resizing(), SegmentationAugmentation((1.0, 1.0), 1.0, 0.0), 7)
    image, labels = pair(16, 16)
    pixels, target = transform(image, labels)
    assert torch.equal(target[:16, :16], torch.from_numpy(labels.astype(np.int64)))
    assert (target[16:] == 7).all()
    assert (target[:, 16:] == 7).all()
    assert pixels[:, 16:].abs().sum() == 0


def test_no_class_fills_a_crop_where_that_can_be() -> None:
    labels = np.zeros((32, 320), np.uint16)
    labels[:, 150:170] = 1
    image = Image.fromarray(np.zeros((32, 320, 3), np.uint8))
    shares = {}
    for most in (0.75, 1.0):
        torch.manual_seed(0)
        transform = TrainTransform(PLAIN, Resizing(), SegmentationAugmentation((1.0, 1.0), most, 0.0), 255)
        both = [len(transform(image, labels)[1].unique()) == 2 for _ in range(60)]
        shares[most] = sum(both) / len(both)
    assert shares[0.75] > 2 * shares[1.0]


def test_sizes_are_rounded_as_upstream_does() -> None:
    box = Resizing((2048, 512))
    assert box.size(683, 512) == (683, 512)
    assert box.size(256, 1300) == (403, 2048)  # the long edge limits: 256 · 2048/1300 = 403.3
    assert box.size(300, 401) == (512, 684)  # 401 · 512/300 = 684.37
    assert box.size(300, 401, 0.5) == (256, 342)
    assert Resizing().size(301, 401, 0.5) == (151, 201)
    with pytest.raises(ConfigError, match="want the longest side and the shortest"):
        Resizing((512, 2048))


def test_views_and_their_normalisation() -> None:
    p = Preprocessing(32, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
    image, _ = pair()
    views, size = EvalTransform(p, Resizing((96, 96)))(image)
    assert size == (64, 48)
    assert [tuple(view.shape) for view in views] == [(3, 96, 72)]
    want = resized(to_tensor(image), (96, 72)).float() / 255
    torch.testing.assert_close(views[0][1], (want[1] - 0.4) / 0.3)
    scaled, _ = EvalTransform(p, Resizing((96, 96)), (0.5, 1.25))(image)
    assert [tuple(view.shape) for view in scaled] == [(3, 32, 24), (3, 80, 60)], "factors on the image's own size"


def test_arrays_of_full_depth() -> None:
    p = Preprocessing(16, 5, (0.5,) * 5, (0.1,) * 5, "bilinear", full_depth=True)
    array = np.random.RandomState(0).rand(5, 24, 20).astype(np.float32)
    pixels, target = TrainTransform(p, Resizing(), SegmentationAugmentation(), 255)(array, np.ones((24, 20), np.uint16))
    assert pixels.shape == (5, 16, 16)
    assert (target == 1).all()
    torch.testing.assert_close(normalised(torch.from_numpy(array), p)[2], (torch.from_numpy(array)[2] - 0.5) / 0.1)
    with pytest.raises(ConfigError, match=r"changes of colour are made for 8-bit images, and these have 5 channel"):
        SegmentationAugmentation.of(Augmentation(color_jitter=0.5), (1.0, 1.0), 0.75, p)


def test_colours_change_but_labels_do_not() -> None:
    image, labels = pair(32, 32)
    transform = TrainTransform(PLAIN, Resizing(), SegmentationAugmentation((1.0, 1.0), 1.0, 0.0, 1.0), 255)
    torch.manual_seed(0)
    crops = [transform(image, labels) for _ in range(8)]
    assert len({pixels.numpy().tobytes() for pixels, _ in crops}) > 4
    assert all(torch.equal(target, crops[0][1]) for _, target in crops)
    grey = TrainTransform(
        Preprocessing(32, 1, (0.0,), (1.0,), "bilinear"), Resizing(), SegmentationAugmentation(colour=1.0), 255
    )
    assert grey(image.convert("L"), labels)[0].shape == (1, 32, 32)


def test_changes_that_labels_would_not_follow_are_refused() -> None:
    off = Augmentation(crop_scale=(1.0, 1.0), auto_augment="none", random_erasing=0.0, shift=0.0)
    SegmentationAugmentation.of(off, (1.0, 1.0), 0.75, PLAIN)
    changes = ({"crop_scale": (0.5, 1.0)}, {"auto_augment": "augmix-m3-w3"}, {"random_erasing": 0.2}, {"shift": 1.0})
    for given in changes:
        with pytest.raises(ConfigError, match=rf"augmentation\.{next(iter(given))}=.*task_options\.scale"):
            SegmentationAugmentation.of(Augmentation(**given), (1.0, 1.0), 0.75, PLAIN)
    with pytest.raises(ConfigError, match="want the smallest and the largest factor"):
        SegmentationAugmentation((2.0, 0.5))
