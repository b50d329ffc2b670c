"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels that ship inside that package."""

from __future__ import annotations

import numpy as np

from vmamba.data.config import DataConfig
from vmamba.data.splits import split_arrays
from vmamba.data.types import ArrayImages, Splits


def load(config: DataConfig) -> Splits:
    """The digits, split 60/20/20 and stratified by class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Sixteen grey levels and zero, 0 to 16, stretched to a byte.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return split_arrays(ArrayImages(pixels, bunch.target.tolist()), [str(name) for name in bunch.target_names], config)
