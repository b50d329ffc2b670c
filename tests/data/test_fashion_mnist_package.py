"""Fashion-MNIST as Debian packages it: found without being told where, and the data set that was published."""

from __future__ import annotations

from collections import Counter

import pytest
from requires import requires_package

from vmamba.data import DataConfig, load_splits
from vmamba.data.datasets.fashion_mnist import CLASSES, DEBIAN_DIR, read_idx

pytestmark = requires_package("dataset-fashion-mnist", DEBIAN_DIR / "train-images-idx3-ubyte.gz")


@pytest.mark.long
def test_the_package_is_the_published_data_set() -> None:
    splits = load_splits(DataConfig("fashion-mnist"))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (55_000, 5_000, 10_000)
    assert splits.classes == CLASSES
    assert Counter(splits.test.targets) == dict.fromkeys(range(10), 1000)
    both = Counter(splits.train.targets) + Counter(splits.val.targets)
    assert both == dict.fromkeys(range(10), 6000)
    assert Counter(splits.val.targets) == dict.fromkeys(range(10), 500)
    # The first labels as they were published: an ankle boot, a pullover, two trousers …
    assert list(splits.test.targets[:10]) == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    image, label = splits.test[0]
    assert (image.size, image.mode, label) == ((28, 28), "L", 9)


def test_an_image_is_the_files_bytes() -> None:
    pixels = read_idx(DEBIAN_DIR / "t10k-images-idx3-ubyte.gz")
    splits = load_splits(DataConfig("fashion-mnist"))
    assert splits.test is not None
    assert pixels.shape == (10_000, 28, 28)
    assert splits.test[7][0].tobytes() == pixels[7].tobytes()
