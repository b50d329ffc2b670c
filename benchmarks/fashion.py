"""Fashion-MNIST in so many minutes of CPU time: `vmamba_nano` beside timm's models of other kinds, by the same recipe.

    python benchmarks/fashion.py vmamba_nano --seeds 3 [--minutes 15] [--output runs/fashion]
    python benchmarks/fashion.py resnet18 convnext_atto [--optimizer adamw]

Every model is trained by the same code with the same data, augmentation and schedule (the recipe of ``fashion-mnist``)
on one thread; only the number of epochs is its own: as many as fit into ``--minutes`` at the speed of its first steps.
What is printed are the last epoch's averaged weights on the 10,000 test images, and the CPU time of the training, its
start and its validations included. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import timm
import torch
from torch import nn

from vmamba.data import DataConfig
from vmamba.evaluate.measure import EvaluateConfig, evaluate
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import ModelParts, Settings
from vmamba.tasks.registry import TASKS
from vmamba.train.loop.optimizer import make_optimizer
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

STEPS = 10  # that are timed


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

    def parts(self, model: Any) -> ModelParts:
        """Nothing here is fine-tuned; asked for all the same."""
        return ModelParts(model, model, model.get_classifier())


def epoch_seconds(config: TrainConfig, task: Classification, splits: Any) -> float:
    """CPU time of one epoch: batches made, forward, backward and update, from the median step; and its validation."""
    model = task.build(config).train()
    optimizer = make_optimizer(model, config)
    data = task.dataset(splits.train, config.augmentation)
    size = config.batch_size
    assert size is not None
    taken, judged = [], []
    for step in range(STEPS):
        started = time.process_time()
        images, labels = task.collate([data[step * size + i] for i in range(size)])
        loss = nn.functional.cross_entropy(model(images), labels)
        judged.append(time.process_time() - started)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - started)
    updates, batches = (-(-len(part) // size) for part in (splits.train, splits.val))
    return updates * median(taken) + batches * median(judged)


def run(name: str, seed: int, minutes: float, folder: Path, optimizer: Any) -> None:
    own = name.startswith("vmamba")
    kind: type[Classification] = Classification if own else PeerClassification
    if not own:
        PeerClassification.peer = name
        TASKS[PeerClassification.name] = PeerClassification
    config = TrainConfig(
        data=DataConfig("fashion-mnist"),
        task=kind.name,
        model=name if own else "vmamba_nano",
        optimizer=optimizer,
        seed=seed,
        device="cpu",
        output=folder / f"{name}_seed{seed}",
    ).resolved()
    task, splits = kind.load(config.data, {})
    epochs = max(1, int(minutes * 60 / epoch_seconds(config, task, splits)))
    started, used = time.perf_counter(), time.process_time()
    result = train(replace(config, epochs=epochs, warmup_epochs=min(1, epochs - 1)))
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    last = evaluate(EvaluateConfig(weights=result.run_folder / "last.safetensors", split="test")).scores
    print(
        f"{name} seed {seed} {config.optimizer}: {100 * last.figures['accuracy']:.2f} % after {epochs} epochs, "
        f"{cpu / 60:.1f} minutes of CPU time, {wall / 60:.1f} by the clock",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], help="instead of the recipe's")
    parser.add_argument("--output", type=Path, default=Path("runs/fashion"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        for seed in range(options.seeds):
            run(name, seed, options.minutes, options.output, options.optimizer)


if __name__ == "__main__":
    main()
