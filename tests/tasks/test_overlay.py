"""Pictures of labels: colours where they belong, masks that read back, legends of any length."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vmamba.data.segmentation.classes import PixelClasses, ade20k_classes
from vmamba.tasks.overlay import legend_figure, mask_image, overlay, png

CLASSES = PixelClasses(("background", "leaf", "stem"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))


def test_the_background_stays_and_classes_have_their_hue() -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[:, 4:8], labels[:, 8:] = 1, 2
    image = Image.fromarray(np.full((12, 12, 3), (90, 30, 200), np.uint8))
    pixels = np.asarray(overlay(image, labels, CLASSES)).astype(int)
    assert (pixels[:, :3] == (90, 30, 200)).all()
    assert (pixels[:, 5:7, 1] > pixels[:, 5:7, 0] + 100).all()
    assert (pixels[:, 9:, 0] > pixels[:, 9:, 1] + 100).all()
    assert (pixels[:, 4] == (0, 255, 0)).all(), "its outline"


def test_masks_read_back() -> None:
    labels = np.array([[0, 1], [2, 2]], np.uint8)
    with Image.open(io.BytesIO(png(mask_image(labels, CLASSES)))) as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == labels.tolist()
        assert image.convert("RGB").getpixel((1, 0)) == (0, 255, 0)
    many = PixelClasses.of([str(i) for i in range(300)])
    with Image.open(io.BytesIO(png(mask_image(np.array([[299]]), many)))) as image:
        assert np.asarray(image).tolist() == [[299]]


@pytest.mark.parametrize("count", [1, 2, 150])
def test_legends(count: int) -> None:
    figure = legend_figure(ade20k_classes(), range(count))
    assert len(figure.axes[0].texts) == count
    assert figure.axes[0].texts[-1].get_text().startswith(f"{count - 1}  ")
