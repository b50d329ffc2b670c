"""Images and objects change together."""

import numpy as np
import pytest
import torch

from vmamba.data import Augmentation, Preprocessing
from vmamba.data.detection.sets import Objects
from vmamba.data.detection.transforms import DetectionAugmentation, EvalTransform, TrainTransform
from vmamba.errors import ConfigError

PLAIN = Preprocessing(32, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def scene(h=400, w=600):
    """A white rectangle on black, and its objects."""
    image = np.zeros((h, w, 3), np.uint8)
    image[100:200, 150:350] = 255
    mask = image[..., 0] > 0
    return image, Objects(np.array([[150, 100, 350, 200]], np.float32), np.array([1]), mask[None])


class Picture:
    """An array that Pillow's users take for an image."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


def check(pixels, boxes, labels, masks):
    """The box and the mask are where the white pixels are."""
    white = pixels[0] > 0.5
    rows, columns = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    torch.testing.assert_close(boxes[0], seen, atol=1.01, rtol=0)
    assert (masks[0] == white).float().mean() > 0.99
    assert labels.tolist() == [1]
    assert masks.shape[1:] == pixels.shape[1:]


@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_resized_and_mirrored(hflip):
    image, objects = scene()
    transform = TrainTransform(PLAIN, DetectionAugmentation((300, 150), hflip=hflip))
    changed = transform(Picture(image), objects)
    assert changed[0].shape == (3, 150, 225)
    check(*changed)
    assert changed[1][0, 0].item() == pytest.approx(225 - 131.25 if hflip else 56.25)


def test_scales_and_crops():
    image, objects = scene()
    torch.manual_seed(0)
    transform = TrainTransform(PLAIN, DetectionAugmentation((900, 300), (200, 250), crop=True))
    shortest = set()
    for _ in range(12):
        changed = transform(Picture(image), objects)
        shortest.add(min(changed[0].shape[1:]))
        if len(changed[1]):
            check(*changed)
    assert {200, 250} <= shortest


def test_objects_out_of_a_crop_are_left_out():
    image, objects = np.zeros((1200, 1200, 3), np.uint8), Objects(
        np.array([[0, 0, 3, 3]], np.float32), np.array([0]), np.zeros((1, 1200, 1200), bool)
    )  # fmt: skip
    torch.manual_seed(0)
    counts = [
        len(TrainTransform(PLAIN, DetectionAugmentation((320, 320), crop=True))(Picture(image), objects)[1])
        for _ in range(8)
    ]
    assert {0, 1} == set(counts)


def test_measured_images_are_resized_alone():
    image, _ = scene()
    pixels, size = EvalTransform(PLAIN, (300, 150))(Picture(image))
    assert (pixels.shape, size) == ((3, 150, 225), (400, 600))
    assert EvalTransform(PLAIN, None)(Picture(image))[0].shape == (3, 400, 600)


def test_changes_that_boxes_could_not_follow_are_refused():
    with pytest.raises(ConfigError, match=r"random_erasing=0\.5 is for whole images' classes"):
        DetectionAugmentation.of(Augmentation(random_erasing=0.5), None, (), False)
