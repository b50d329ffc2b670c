"""What a gate costs the selective scan: with ``z``, without, and as an operation behind it, in turns in one process.

    python benchmarks/scan_gate.py [--threads 2]

Bytes set the floor: three streams without (u, delta, y), four with z. Both ways eight and thirteen: the gate also keeps
y as it was before it, and backward reads that and z and writes z's gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from vmamba import selective_scan

SHAPES = [(1, 1, 768, 16, 196), (8, 4, 96, 1, 3136)]


def turns(candidates: dict[str, Callable[[], object]], rounds: int = 60) -> dict[str, list[float]]:
    """Milliseconds of each candidate, in turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds + 3):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if i >= 3:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def candidates_of(b: int, k: int, d: int, n: int, length: int, gradients: bool) -> dict[str, Callable[[], object]]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).requires_grad_(gradients)

    u, delta, z = (normal(b, k * d, length) for _ in range(3))
    B, C = (normal(b, k, n, length) for _ in range(2))
    A, D, bias = -torch.rand(k * d, n), normal(k * d), normal(k * d)
    A = A.requires_grad_(gradients)
    plain = [u, delta, A, B, C, D, bias]
    runs = {
        "without": (lambda: selective_scan(*plain, True), plain),
        "with z": (lambda: selective_scan(*plain, True, z=z), [*plain, z]),
        "z behind it": (lambda: selective_scan(*plain, True) * F.silu(z), [*plain, z]),
    }
    if not gradients:
        return {name: run for name, (run, _) in runs.items()}
    dy = torch.ones(b, k * d, length)
    return {name: lambda r=run, t=leaves: torch.autograd.grad(r(), t, dy) for name, (run, leaves) in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    for shape in SHAPES:
        for gradients in (False, True):
            times = turns(candidates_of(*shape, gradients))
            best = {name: min(each) for name, each in times.items()}
            print(f"(b, k, d, n, l) = {shape}, {'both ways' if gradients else 'forward'}")
            for name, each in times.items():
                ratio = f"{best[name] / best['without']:.2f} x, median {median(each) / median(times['without']):.2f} x"
                print(f"  {name:12} best {best[name]:8.2f} ms  median {median(each):8.2f} ms  {ratio}")


if __name__ == "__main__":
    main()
