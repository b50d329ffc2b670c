"""What a voxel of SS3D costs beside a pixel of SS2D with as many directions: ``python benchmarks/ss3d.py [--turns 12]``.

Forward and backward of one layer of 64 channels and one state, d_inner 128, on 32³ voxels and on 128×256 pixels, which
are as many. Each peer has a process of its own, on one thread; they take turns. Times are the processes' CPU time, which
other programs on the machine disturb least. Before that each layer's output and gradients are compared with the torch
backend's, on a small map.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba import SS2D, SS3D
from vmamba.scan.any_order import along, cross

CHANNELS, MAP, VOLUME = 64, (128, 256), (32, 32, 32)
SIX = (*cross(2), *cross(2)[::2])

PEERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SS2D, 4 directions (cross-scan)": (lambda: SS2D(CHANNELS, d_state=1, forward_type="v05_noz"), MAP),
    "SS2D, 6 directions": (lambda: SS2D(CHANNELS, d_state=1, forward_type="v05_noz", scan_orders=SIX), MAP),
    "SS3D, 4 directions (along z and h)": (lambda: SS3D(CHANNELS, d_state=1, scan_orders=along((0, 1), 3)), VOLUME),
    "SS3D, 6 directions (default)": (lambda: SS3D(CHANNELS, d_state=1), VOLUME),
}
PAIRS = (
    ("SS3D, 4 directions (along z and h)", "SS2D, 4 directions (cross-scan)"),
    ("SS3D, 6 directions (default)", "SS2D, 6 directions"),
)
TOLERANCE = 1e-4


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and every gradient of a loss of it."""
    for tensor in (x, *layer.parameters()):
        tensor.grad = None
    y = layer(x)
    y.square().mean().backward()
    return [y.detach(), *(t.grad.clone() for t in (x, *layer.parameters()) if t.grad is not None)]


def check(layer: nn.Module, ndim: int) -> float:
    """The largest difference from the torch backend, of each tensor's scale."""
    x = torch.randn(1, *(6, 5, 7)[:ndim], CHANNELS, requires_grad=True)
    found = step(layer, x)
    layer.selective_scan_backend = "torch"
    wanted = step(layer, x)
    layer.selective_scan_backend = None
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def serve(name: str) -> None:
    """Be a peer: check, then time a step for every line of input."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, sizes = PEERS[name]
    layer = make()
    print(check(layer, len(sizes)), flush=True)
    x = torch.randn(1, *sizes, CHANNELS, requires_grad=True)
    for _ in range(2):
        step(layer, x)
    for _ in sys.stdin:
        step(layer, x)  # memory and caches are this peer's again
        began = time.process_time()
        step(layer, x)
        print(time.process_time() - began, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--peer", choices=list(PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve(options.peer)
        return 0
    peers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--peer", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in PEERS
    }
    errors = {name: float(peer.stdout.readline()) for name, peer in peers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(options.turns):
        for name, peer in peers.items():
            peer.stdin.write("go\n")
            peer.stdin.flush()
            seconds[name].append(float(peer.stdout.readline()))
    for peer in peers.values():
        peer.stdin.close()
        peer.wait()
    places = MAP[0] * MAP[1]
    print("| peer | best, ns a place | median | error |\n| --- | --- | --- | --- |")
    for name, times in seconds.items():
        best, median = min(times) / places * 1e9, statistics.median(times) / places * 1e9
        print(f"| {name} | {best:.0f} | {median:.0f} | {errors[name]:.1e} |")
    for one, other in PAIRS:
        ratio = min(seconds[one]) / min(seconds[other])
        median = statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        print(f"{one} / {other}: {ratio:.2f} of the best, {median:.2f} in the median turn")
    wrong = [name for name, error in errors.items() if error > TOLERANCE]
    if wrong:
        print(f"off by more than {TOLERANCE}: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
