"""A task over volumes that needs long range along each axis, learnt with all scans, and without those along an axis.

Run: python benchmarks/volume_axes.py [--steps 250] [--seed 1]

Prints for every network the accuracy of each axis's labels on held-out volumes, and what a voxel's label would be guessed
with: 0.5. The test of the same task is tests/models/test_volumes.py.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.data.datasets.lines import asked, make_lines
from vmamba.models.volumes import VolumeTrunk

HELD_OUT, BATCH, STEPS = 8, 2, 250


def tensors(count: int, seed: int) -> tuple[Tensor, Tensor]:
    volumes, labels = make_lines(count, seed)
    return torch.from_numpy(volumes), torch.from_numpy(labels)


class Network(nn.Module):
    """Two blocks at full resolution, and a class for each axis at every voxel: ``(b, 3, Z, H, W) → (b, 3, Z, H, W)``.

    Besides its scans it sees three voxels far: through the stem's and the blocks' convolutions.
    """

    def __init__(self, scan_axes: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = VolumeTrunk(
            in_chans=3, dims=(24,), depths=(2,), strides=(1,), ssm_ratio=2.0, mlp_ratio=2.0, scan_axes=scan_axes
        )
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk.maps(x)[-1]).movedim(-1, 1)


def train(scan_axes: tuple[int, ...], steps: int, seed: int) -> list[float]:
    """The accuracies of the labels of axes z, h and w after so many steps."""
    torch.manual_seed(seed)
    model = Network(scan_axes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    rise, fall = 20, steps // 4
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / rise, (steps - i) / fall))
    where = torch.from_numpy(asked())
    for step in range(steps):
        volumes, labels = tensors(BATCH, seed=1000 * seed + step + 1)
        loss = F.binary_cross_entropy_with_logits(model(volumes)[:, where], labels[:, where])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"    step {step + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    volumes, labels = tensors(HELD_OUT, seed=0)
    with torch.inference_mode():
        right = (model.eval()(volumes) > 0) == (labels > 0.5)
    return [right[:, axis][:, where[axis]].float().mean().item() for axis in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--axes", nargs="*", default=["zhw", "hw", "zw", "zh"], help="axes that are scanned")
    options = parser.parse_args()
    print("| scans along | z | h | w | seconds |\n| --- | --- | --- | --- | --- |")
    for axes in options.axes:
        began = time.process_time()
        found = train(tuple("zhw".index(axis) for axis in axes), options.steps, options.seed)
        print(f"| {', '.join(axes)} | " + " | ".join(f"{one:.3f}" for one in found), end="")
        print(f" | {time.process_time() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
