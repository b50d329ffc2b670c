"""A second task, for tests alone: where in a generated image does a disc lie? Regression by mean absolute error.

It shares nothing with classification: other truth, a batch that is a dictionary, other figures of which smaller is
better, another kind of answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vmamba.data import Preprocessing, read_image
from vmamba.errors import ConfigError, DataError
from vmamba.tasks.protocol import BatchLoss, Metric, ModelParts
from vmamba.tasks.vssm_models import build_vssm, check_image_size, vssm_from_metadata, vssm_metadata, vssm_parts

SIDE = 16
PREPROCESSING = Preprocessing(SIDE, 1, (0.5,), (0.25,))


def disc(x: float, y: float) -> Image.Image:
    """A white disc on black; ``x`` and ``y`` between 0 and 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return Image.fromarray(np.where(np.hypot(columns - x, rows - y) < 0.2, 255, 0).astype(np.uint8))


class Discs:
    """``count`` places ``(count, 2)``, the same for the same seed."""

    def __init__(self, count: int, seed: int) -> None:
        self.places = np.random.RandomState(seed).uniform(0.2, 0.8, (count, 2)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class DiscSubsets:
    train: Discs
    val: Discs
    test: Discs | None
    skipped: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        parts = {"train": self.train, "val": self.val}
        return {name: hashlib.sha256(part.places.tobytes()).hexdigest()[:16] for name, part in parts.items()}


class DiscPixels(torch.utils.data.Dataset):
    def __init__(self, discs: Discs) -> None:
        self.discs = discs
        self.transform = PREPROCESSING.eval_transform()

    def __len__(self) -> int:
        return len(self.discs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        place = self.discs.places[index]
        return {"pixels": self.transform(disc(*place)), "place": torch.from_numpy(place)}


class AbsoluteError:
    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> BatchLoss:
        distance = (model(batch["pixels"]) - batch["place"]).abs().mean(1)
        return BatchLoss(distance.mean(), len(distance), {"far": (distance.detach() > 0.1).sum()})


@dataclass
class Distances:
    """Meter and measurement in one: the distances, one a sample."""

    seen: list[float] = field(default_factory=list)

    def observe(self, outputs: Tensor, batch: dict[str, Tensor]) -> list[float]:
        return (outputs.cpu() - batch["place"].cpu()).norm(dim=1).tolist()  # objects, not tensors

    def update(self, observation: list[float]) -> None:
        self.seen += observation

    def measurement(self) -> Distances:
        return self

    @property
    def count(self) -> int:
        return len(self.seen)

    @property
    def figures(self) -> dict[str, float]:
        return {"distance": sum(self.seen) / len(self.seen)}

    def summary(self) -> str:
        return f"distance {self.figures['distance']:.3f}"

    def tables(self, part: str) -> list[str]:
        return [f"the farthest disc of {part}: {max(self.seen):.3f}"]

    def metadata(self) -> dict[str, str]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {"samples": self.count, **self.figures}


@dataclass(frozen=True)
class PlaceAnswer:
    path: Path
    place: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "place": list(self.place)}


@dataclass(frozen=True)
class DiscTask:
    """Outputs are ``(b, 2)``: column and row, as shares of the side."""

    unit: str = "side"

    name = "discs"
    running = (Metric("mae", "mae", "Mean absolute error"), Metric("far", "far", "Far off", 1, percent=True))
    metrics = (Metric("distance", "dist", "Distance", digits=3),)
    headline = "distance"
    described_by = ("unit",)
    default_model = "vmamba_nano"
    default_dataset = "digits"
    own_images = "folder"
    batch_size = 64

    @classmethod
    def load(cls, data: Any, options: Mapping[str, Any]) -> tuple[DiscTask, DiscSubsets]:
        if set(options) - {"unit"}:
            raise ConfigError(f"task_options={dict(options)}: discs have unit alone")
        return cls(**options), DiscSubsets(Discs(96, data.seed), Discs(16, data.seed + 1), Discs(16, data.seed + 2))

    @classmethod
    def check_model(cls, name: str, options: Mapping[str, Any]) -> None:
        pass

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> DiscTask:
        return cls(json.loads(metadata["unit"]))

    def metadata(self, model: nn.Module) -> dict[str, str]:
        return {**vssm_metadata(model, PREPROCESSING), "unit": json.dumps(self.unit)}

    @property
    def preprocessing(self) -> Preprocessing:
        return PREPROCESSING

    @property
    def summary(self) -> str:
        return "2 coordinates"

    def reload(self, data: Any, weights: Path) -> DiscSubsets:
        if data.in_chans == 3:
            raise DataError(f"discs are grey, as {weights} knows them")
        return self.load(data, {})[1]

    def dataset(self, samples: Discs, augmentation: Any = None) -> DiscPixels:
        return DiscPixels(samples)

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def inputs(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["pixels"]

    def run(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs)

    def configured(self, options: Mapping[str, Any]) -> DiscTask:
        return self

    def build(self, settings: Any) -> nn.Module:
        return build_vssm(settings, 2, PREPROCESSING)

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        return vssm_from_metadata(metadata)

    def check(self, model: nn.Module, name: str) -> None:
        check_image_size(model, PREPROCESSING, name)

    def parts(self, model: nn.Module) -> ModelParts:
        return vssm_parts(model)

    def adapt(self, model: nn.Module, weights: Any, source: str) -> dict[str, Tensor]:
        return dict(weights.state_dict)

    def objective(self, settings: Any) -> AbsoluteError:
        return AbsoluteError()

    def meter(self) -> Distances:
        return Distances()

    def pictures(self, measurement: Distances, title: str) -> dict[str, Any]:
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots().hist(measurement.seen)
        return {"distances": figure}

    def read(self, path: Path) -> Tensor:
        return PREPROCESSING.eval_transform()(read_image(path, 1))

    def stack(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return torch.stack(list(inputs))

    def answers(self, outputs: Tensor, paths: Sequence[Path], settings: Any) -> list[PlaceAnswer]:
        return [PlaceAnswer(path, (x, y)) for path, (x, y) in zip(paths, outputs.tolist(), strict=True)]

    def recall(self, values: Mapping[str, Any]) -> PlaceAnswer:
        return PlaceAnswer(Path(values["path"]), tuple(values["place"]))

    def print_answers(self, answers: Sequence[PlaceAnswer], console: Any) -> None:
        for answer in answers:
            console.print(f"{answer.path.name} at {answer.place[0]:.2f}, {answer.place[1]:.2f}")

    def sheet(self, answers: Sequence[PlaceAnswer], total: int, title: str) -> Any:
        from matplotlib.figure import Figure

        return Figure()
