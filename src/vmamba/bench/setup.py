"""What benchmarks of whole models share: options, models and images, what counts as wrong, and the race at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.bench.scan_calls import relative_error
from vmamba.bench.timing import Race, Timing, first_timed, with_ratios
from vmamba.errors import ConfigError, nearest
from vmamba.models import create_model, model_config


@dataclass(frozen=True)
class BenchModelConfig:
    """How to time whole models.

    Attributes:
        size: Side of the images in pixels.
        batch: Images at once.
        device: auto, cpu, cuda, cuda:1, ...
        threads: torch's threads; without it as many as torch has by default.
        rounds: Timed turns of every candidate, at most.
        seconds: No turn starts after so long.
        baseline: Candidate that ratios refer to; by default the first that was timed.
        model_options: Other fields of the model, such as {dims: [8, 16], depths: [1, 1]}.
        output: Folder for the JSON file and the picture.
    """

    size: int = 224
    batch: int = 1
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 20
    seconds: float = 30.0
    baseline: str | None = None
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: Path = Path("runs/bench")


def whole_numbers(option: str, words: Sequence[str]) -> list[int]:
    """The numbers that an option's words spell.

    Raises:
        ConfigError: a word that is no number.
    """
    for word in words:
        if not word.isdecimal():
            raise ConfigError(f"--{option} takes a whole number ≥ 1, not {word!r}")
    return [int(word) for word in words]


def images(config: BenchModelConfig, device: torch.device, size: int | None = None) -> Tensor:
    """Random images of the configuration's size, or another."""
    side = size or config.size
    return torch.randn(config.batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def ours(config: BenchModelConfig, name: str, backend: str | None, device: torch.device) -> nn.Module:
    """The model with the same fresh weights at every call, in evaluation mode: nothing in it draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **{**config.model_options, "selective_scan_backend": backend})
    return model.eval().to(device)


def timm_model(name: str, size: int) -> nn.Module:
    """A model of timm's for images of this size, with fresh weights.

    Raises:
        ConfigError: it cannot be built with its defaults.
    """
    import timm

    choices: tuple[dict[str, Any], ...] = ({"img_size": size}, {})
    for options in choices:  # models whose windows depend on the size must be told it; others refuse
        try:
            model: nn.Module = timm.create_model(name, **options)
            return model
        except TypeError:
            continue
    raise ConfigError(f"--peer {name!r} cannot be built by timm with its defaults")


def check_models(config: BenchModelConfig, names: Sequence[str]) -> None:
    """Refuse options that are not legal, and unknown models of ours, before anything is measured.

    Raises:
        ConfigError: one is.
    """
    for option, value in (("size", config.size), ("batch", config.batch), ("rounds", config.rounds)):
        if value < 1:
            raise ConfigError(f"--{option} takes a number ≥ 1, not {value}")
    for name in names:
        model_config(name, **config.model_options)


def check_timm(names: Sequence[str]) -> None:
    """Refuse names that timm does not know.

    Raises:
        ConfigError: one is unknown.
    """
    import timm

    for name in names:
        if not timm.is_model(name):
            raise ConfigError(f"--peer {name!r} is not a model of timm's{nearest(name, timm.list_models())}")


def why_wrong(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: float) -> str:
    """What is wrong with ``got`` or an empty string; ``allowed`` is a part of each tensor's largest value."""
    # A gradient that is 0 but for rounding has no scale of its own.
    floor = 1e-6 * max(float(want.abs().max()) for want in expected.values())
    for name, want in expected.items():
        error = relative_error(got[name], want, floor)
        if not error <= allowed:
            return f"the error of {name} is {error:.1e} of its largest value, more than {allowed:.1e}"
    return ""


def finished_race(config: BenchModelConfig, title: str, timings: Sequence[Timing]) -> Race:
    """The race with its ratios and its setting.

    Raises:
        ConfigError: no candidate is called as the configuration's ``baseline`` is.
    """
    baseline = config.baseline or first_timed(timings)
    setting = {"size": config.size, "batch": config.batch, "model_options": config.model_options}
    return Race(title, baseline, with_ratios(timings, baseline), setting)
