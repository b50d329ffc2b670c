"""How fast the GPU kernels are on the GPU of this machine, beside floors and beside others. Right or not: tests/gpu.

    python benchmarks/gpu                            # scans, layers, VMamba-T beside swin_tiny and convnext_tiny
    python benchmarks/gpu --parts compiled,latency,large

Needs torch ≥ 2.10 with its Triton, timm and this tree on PYTHONPATH, and mamba-ssm with its CUDA scan for the columns that
compare with it; nothing is installed. Every result is a line of JSON as soon as it is there; a short table comes last.
Without a GPU it says so and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from layers import layers
from models import OURS, PEERS, models
from scans import alone, fused
from timing import Row

from vmamba.kernels.triton import machine_obstacle

_HALF, _FULL = torch.bfloat16, torch.float32
_ALL = [OURS, *PEERS]


def parts(batch: int) -> dict[str, partial[Iterator[Row]]]:
    """What can be measured; the first four are where nothing is named."""
    return {
        "fused": partial(fused, batch),
        "alone": partial(alone),
        "layers": partial(layers, batch),
        "models": partial(models, _ALL, ["eager"], [_HALF, _FULL], [(batch, 224)]),
        "compiled": partial(models, _ALL, ["compile", "reduce-overhead"], [_HALF], [(batch, 224)]),
        "graphs": partial(models, _ALL, ["graph"], [_HALF], [(batch, 224)]),
        "latency": partial(models, _ALL, ["eager", "graph"], [_HALF], [(1, 224), (8, 224)]),
        "large": partial(models, _ALL, ["eager"], [_HALF], [(32, 512), (32, 768)]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", help=f"of {', '.join(parts(1))}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, help="file for the lines of JSON")
    options = parser.parse_args()
    known = parts(options.batch)
    wanted = options.parts.split(",") if options.parts else list(known)[:4]
    if unknown := set(wanted) - set(known):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    obstacle = machine_obstacle()
    if obstacle is not None:
        print(f"nothing measured: {obstacle}")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    rows: list[Row] = []
    for name in wanted:
        for row in known[name]():
            rows.append(row)
            line = json.dumps(row)
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")
    print()
    for row in rows:
        print(" ".join(f"{name} {_short(value)}" for name, value in row.items() if name != "part"))
    return 0


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
