"""UPerNet on VMamba beside segmentation-models-pytorch's UPerNet on timm's swin_tiny and convnext_tiny.

    python benchmarks/segmentation.py [--threads 2] [--size 512] [--rounds 5] [--models NAME …]

All heads are 512 channels wide (segmentation-models-pytorch's default of 256 is a third of the work), with 150 classes.
Each candidate lives in a process of its own, and they take turns; ours must agree with the model as it is to 1e-4 before
anything is timed. Multiply-adds are counted by torch's counter in the model as it is, of convolutions and products; the
scans themselves, which are few, are not in it. Weights are fresh.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

OURS = "upernet_vmamba_tiny_s1l8"
PEERS = {"swin_tiny": "tu-swin_tiny_patch4_window7_224", "convnext_tiny": "tu-convnext_tiny"}


def peer(name: str, size: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    options = {"img_size": size} if "swin" in name else {}
    return smp.UPerNet(PEERS[name], encoder_weights=None, decoder_channels=512, classes=150, **options)


def candidates() -> dict[str, Callable[[int], tuple[nn.Module, Callable[[Tensor], Any]]]]:
    """By name: from the side of the images to the model as it is, and what is timed."""
    import vmamba

    def ours(size: int) -> nn.Module:
        torch.manual_seed(0)
        return vmamba.create_model(OURS).eval()

    def optimized(size: int) -> tuple[nn.Module, Callable[[Tensor], Any]]:
        model = ours(size)
        fast = vmamba.optimize(model, example=image(size), compile=False)
        error = relative(fast(image(size)), model(image(size)))
        assert error < 1e-4, f"off by {error:.1e}"
        return model, fast

    def direct(size: int) -> tuple[nn.Module, Callable[[Tensor], Any]]:
        model = ours(size)
        want = reference(model, image(size))
        error = relative(model(image(size)), want)
        assert error < 1e-4, f"off by {error:.1e}"
        return model, model

    def peers(name: str) -> Callable[[int], tuple[nn.Module, Callable[[Tensor], Any]]]:
        def build(size: int) -> tuple[nn.Module, Callable[[Tensor], Any]]:
            model = peer(name, size).eval()
            assert model(image(size)).isfinite().all()
            return model, model

        return build

    return {"vmamba": direct, "vmamba optimized": optimized, **{name: peers(name) for name in PEERS}}


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """Our model with its large convolution over resized, concatenated maps, as the paper has it."""
    import vmamba.heads.blocks as blocks

    def plain(maps: Any, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        size = maps[0].shape[2:]
        resized = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps]
        return F.conv2d(torch.cat(resized, 1), weight, bias, padding=1)

    ours, blocks.convolve_pyramid = blocks.convolve_pyramid, plain
    try:
        return model(x)
    finally:
        blocks.convolve_pyramid = ours


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def work(pipe: Connection, name: str, size: int, threads: int) -> None:
    """One candidate's process: build, tell the multiply-adds, then time one run a request."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        model, run = candidates()[name](size)
        with FlopCounterMode(display=False) as counter:
            model(image(size))
        x = image(size)
        run(x)
        pipe.send(counter.get_total_flops() / 2e9)
        while pipe.recv():
            start = time.perf_counter()
            run(x)
            pipe.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    names = ["vmamba", "vmamba optimized", *PEERS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    macs: dict[str, float] = {}
    for name in options.models:
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, name, options.size, options.threads), daemon=True).start()
        macs[name] = pipes[name].recv()  # one after the other: building is work too
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    best = {name: min(each) for name, each in times.items()}
    rivals = [best[name] for name in best if name in PEERS]
    print(f"{options.size}×{options.size}, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':18}{'GMACs':>8}{'best':>10}{'median':>10}  ratio to the better peer")
    for name, each in times.items():
        ratio = f"{best[name] / min(rivals):.2f}" if rivals else "–"
        print(f"{name:18}{macs[name]:8.0f}{best[name]:8.2f} s{statistics.median(each):8.2f} s  {ratio}")


if __name__ == "__main__":
    main()
