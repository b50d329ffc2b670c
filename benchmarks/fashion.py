"""Fashion-MNIST in so many minutes: `vmamba_nano` beside timm's models of other kinds, all by the same recipe.

    python benchmarks/fashion.py vmamba_nano --seeds 3 [--minutes 15] [--output runs/fashion]
    python benchmarks/fashion.py resnet18 convnext_atto

Every model is trained by the same code with the same data, augmentation, optimizer and schedule (the recipe of
``fashion-mnist``); only the number of epochs is its own: as many as fit into ``--minutes`` at the speed of its first
steps, the recipe's at most. What is printed are the last epoch's averaged weights on the 10,000 test images. Run it on
an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from torch import nn

from vmamba.data import DataConfig
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.tasks.registry import TASKS
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

STEPS = 20  # that are timed
TRAINING_IMAGES = 50_000


@dataclass(frozen=True)
class PeerClassification(Classification):
    """Classification by a model of timm's, named in ``peer``."""

    name: ClassVar[str] = "peer-classification"
    peer: ClassVar[str]

    def build(self, settings: Settings) -> nn.Module:
        """timm's model with fresh weights; its first layer takes the images' channels."""
        return self.rebuild({})

    def rebuild(self, metadata: Mapping[str, str]) -> nn.Module:
        return timm.create_model(self.peer, in_chans=self.preprocessing.in_chans, num_classes=len(self.classes))

    def metadata(self, model: nn.Module) -> dict[str, str]:
        classes, preprocessing = list(self.classes), self.preprocessing.to_dict()
        return {"classes": json.dumps(classes), "preprocessing": json.dumps(preprocessing), "config": "{}"}

    def parts(self, model: nn.Module) -> ModelParts:
        raise NotImplementedError("nothing here is fine-tuned")


def step_seconds(config: TrainConfig, task: Classification, samples: Any) -> float:
    """Of one training step: batch made, forward, backward, AdamW; the median of `STEPS`."""
    model = task.build(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    data = task.dataset(samples, config.augmentation)
    size = config.batch_size
    assert size is not None
    taken = []
    for step in range(STEPS):
        started = time.perf_counter()
        images, labels = task.collate([data[step * size + i] for i in range(size)])
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[STEPS // 2]


def run(name: str, seed: int, minutes: float, folder: Path) -> None:
    own = name.startswith("vmamba")
    kind: type[Classification] = Classification if own else PeerClassification
    if not own:
        PeerClassification.peer = name
        TASKS[PeerClassification.name] = PeerClassification
    config = TrainConfig(
        data=DataConfig("fashion-mnist"),
        task=kind.name,
        model=name if own else "vmamba_nano",
        seed=seed,
        output=folder / f"{name}_seed{seed}",
    ).resolved()
    task, splits = kind.load(config.data, {})
    seconds = step_seconds(config, task, splits.train)
    assert config.batch_size is not None
    assert config.epochs is not None
    fit = int(minutes * 60 / (seconds * TRAINING_IMAGES / config.batch_size))
    epochs = max(2, min(config.epochs, fit))
    started, used = time.perf_counter(), time.process_time()
    result = train(replace(config, epochs=epochs))
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    last = evaluate(EvaluateConfig(weights=result.run_folder / "last.safetensors", split="test")).scores
    print(
        f"{name} seed {seed}: {100 * last.figures['accuracy']:.2f} % after {epochs} epochs, "
        f"{wall / 60:.1f} minutes ({cpu / 60:.1f} of CPU time on {torch.get_num_threads()} threads)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/fashion"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.models:
        for seed in range(options.seeds):
            run(name, seed, options.minutes, options.output)


if __name__ == "__main__":
    main()
