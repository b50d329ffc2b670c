"""What each class counts in the loss: by how rare it is, or as a file says."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmamba.data.types import Targets
from vmamba.errors import ConfigError, nearest

#: The name among ``task_options``.
OPTION = "class_weights"


def class_weights(given: Any, classes: Sequence[str], targets: Targets) -> tuple[float, ...]:
    """A weight for each class, or nothing where all count the same.

    ``balanced`` weighs a class by how rare it is among the training images. Of one label an image: n / (classes ×
    images of the class), which is 1 on average over images. Of several: what an image that has the label counts beside
    one that has it not, (n − images) / images.

    Args:
        given: none, balanced, ``{class: weight}``, or a CSV file with the columns class and weight.
        classes: their names.
        targets: the training images' labels, ``(n,)`` or ``(n, classes)``.

    Raises:
        ConfigError: something else, a class without a weight, or a weight that is none.
    """
    if given in (None, "none"):
        return ()
    if given == "balanced":
        return _balanced(classes, targets)
    if isinstance(given, (str, Path)):
        given = _read(Path(given))
    if not isinstance(given, Mapping):
        raise ConfigError(f"{OPTION}={given!r}: want balanced, none, {{class: weight}} or a CSV file")
    said = {str(name): weight for name, weight in given.items()}
    missing, unknown = [c for c in classes if c not in said], [c for c in said if c not in classes]
    if missing or unknown:
        mend = nearest(unknown[0], classes) if unknown else ""
        raise ConfigError(f"{OPTION}: no weight for {missing[:10]}, and no class {unknown[:10]}{mend}")
    try:
        weights = tuple(float(said[name]) for name in classes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{OPTION}: {error}; want a number for each class") from error
    if not all(np.isfinite(weights)) or min(weights) < 0 or max(weights) == 0:
        raise ConfigError(f"{OPTION}={dict(zip(classes, weights, strict=True))}: want numbers, 0 or more, not all 0")
    return weights


def weights_by_rarity(classes: Sequence[str], counts: Sequence[int], what: str) -> tuple[float, ...]:
    """A weight for each class by how rare it is: all / (classes × its own), 1 on average over all.

    Args:
        classes: their names.
        counts: of images or pixels that show each.
        what: is counted, for messages.

    Raises:
        ConfigError: a class has none.
    """
    lacking = [name for name, count in zip(classes, counts, strict=True) if not count]
    if lacking:
        raise ConfigError(f"{OPTION}=balanced: no {what} has {lacking[:10]}, so how rare it is is not known")
    return tuple(sum(counts) / (len(classes) * count) for count in counts)


def _balanced(classes: Sequence[str], targets: Targets) -> tuple[float, ...]:
    if targets.ndim == 1:
        return weights_by_rarity(classes, np.bincount(targets, minlength=len(classes)).tolist(), "training image")
    counts = (targets == 1).sum(0)
    weights_by_rarity(classes, counts.tolist(), "training image")  # each must occur
    weights = (len(targets) - counts) / counts
    return tuple(float(weight) for weight in weights)


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{OPTION}={path}: neither balanced nor none, nor a CSV file ({error})") from error
    try:
        return {row["class"]: row["weight"] for row in rows}
    except KeyError as error:
        raise ConfigError(f"{OPTION}: {path} lacks the column {error}; want class and weight") from error
