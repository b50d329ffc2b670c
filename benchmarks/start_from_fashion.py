"""What a start from Fashion-MNIST is worth to two hundred digits: the figures of the README, some twenty minutes.

    python benchmarks/start_from_fashion.py [--seeds 3] [--output runs/start_from_fashion]

A `vmamba_nano` is trained on Fashion-MNIST, then on 200 digits from scratch, from that run, and from its early stages
alone, for each seed; the accuracies are of the 359 test images. Each data set has its own recipe.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from vmamba.data import DataConfig
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig


def accuracy(config: TrainConfig) -> float:
    return train(config).test.figures["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/start_from_fashion"))
    options = parser.parse_args()
    folder: Path = options.output
    first = folder / "fashion"
    train(TrainConfig(data=DataConfig("fashion-mnist"), epochs=4, output=first))
    starts = {"from scratch": {}, "from Fashion-MNIST": {"init": str(first)}}
    starts["from its early stages"] = {"init": str(first), "reset_stages": 2}
    digits = TrainConfig(data=DataConfig("digits", train_images=200))
    for name, start in starts.items():
        found = [
            accuracy(replace(digits, **start, seed=seed, output=folder / f"{name.replace(' ', '_')}_{seed}"))
            for seed in range(options.seeds)
        ]
        print(f"{name}: {100 * sum(found) / len(found):.1f} %", [f"{100 * one:.1f}" for one in found], flush=True)


if __name__ == "__main__":
    main()
