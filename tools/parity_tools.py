"""What the parity programs share: drawn weights, errors, and summaries of tensors that are too large to store."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from parity_fill import fill

__all__ = ["Result", "dense_weights", "fill", "relative", "summary_error"]


@dataclass(frozen=True)
class Result:
    """A case: by name of what was compared, the error and what is allowed."""

    name: str
    errors: Mapping[str, tuple[float, float]]

    @property
    def good(self) -> bool:
        """Whether everything is within its tolerance; NaN is not."""
        return all(error <= allowed for error, allowed in self.errors.values())


def relative(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max|b|``; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def dense_weights(keys: Iterable[Sequence[Any]], seed: int) -> dict[str, Tensor]:
    """A segmenter's or detector's filled weights, of its ordered ``[key, shape]`` list: a running mean is one less."""
    weights = {str(key): torch.from_numpy(fill(key, shape, seed)) for key, shape in keys}
    return {key: value - 1 if key.endswith("running_mean") else value for key, value in weights.items()}


def summary_error(value: Tensor, want: Mapping[str, Any]) -> float:
    """How far a tensor is from its summary (mean, deviation, extremes, first values, channels' means), of its scale."""
    if list(value.shape) != want["shape"]:
        return float("inf")
    full = value.double()
    scale = max(abs(want["min"]), abs(want["max"]))
    got = {"mean": full.mean(), "std": full.std(correction=0), "min": full.min(), "max": full.max()}
    errors = [abs(float(number) - want[name]) for name, number in got.items()]
    first = torch.tensor(want["first"], dtype=torch.float64)
    errors.append(float((full.flatten()[: len(first)] - first).abs().max()))
    if "channel_means" in want:
        means = torch.tensor(want["channel_means"], dtype=torch.float64)
        errors.append(float((full.mean((0, 2, 3)) - means).abs().max()))
    return max(errors) / scale
