"""Mamba-2's scan at the shapes of VMamba-T's four stages beside the chunked form of its paper, in plain PyTorch.

    python benchmarks/ssd.py [--threads 2] [--rounds 20] [--size 224] [--batch 1] [--backward]

The plain form is listing 1 of arXiv 2405.21060 in words of our own: every head by itself, chunks of 64. Each candidate
lives in a process of its own, and they take turns; both must agree with the recurrence in float64 to 1e-4 of scale,
gradients too with --backward, before anything is timed. ``vmamba`` is the compiled recurrence (backend "oflex"),
``products`` backend "torch". Beside them stands what those products cost alone, in a process more: ``floor`` multiplies
matrices of the sizes that backend "torch" multiplies, and does nothing else.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import ssd_scan
from vmamba.scan import ssd_scan_reference

#: Channels of the stages of vmamba_tiny_m2; a head has 16, each of the 4 directions is a group, and there are 64 states.
STAGES = (96, 192, 384, 768)
HEAD, DIRECTIONS, STATES = 16, 4, 64
CANDIDATES = ("vmamba", "products", "plain", "floor")


class Setting(NamedTuple):
    """What is timed: images, their side in pixels, a stage from 0, and whether backward too."""

    batch: int
    size: int
    stage: int
    backward: bool


def inputs(setting: Setting) -> list[Tensor]:
    """``x, dt, A, B, C, D`` as the layers of a fresh model make them: steps around softplus(0), decays -1."""
    length = (setting.size // (4 << setting.stage)) ** 2
    heads = DIRECTIONS * STAGES[setting.stage] // HEAD
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    b, states = setting.batch, (DIRECTIONS, STATES)
    return [
        normal(b, length, heads, HEAD),
        F.softplus(0.3 * normal(b, length, heads)),
        -torch.ones(heads),
        normal(b, length, *states),
        normal(b, length, *states) / math.sqrt(STATES),
        torch.ones(heads),
    ]


def plain(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = 64) -> Tensor:
    """The four steps of the paper's listing, for all heads and chunks at once."""
    length, heads = x.shape[1:3]
    chunk = min(chunk, length)
    B, C = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (B, C))
    pad = -length % chunk
    cut = [F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x * dt[..., None], dt * A, B, C)]
    driven, log_decay, B, C = (t.unflatten(1, (-1, chunk)) for t in cut)  # (b, z, q, h, ·)
    total = log_decay.permute(0, 3, 1, 2).cumsum(-1)  # (b, h, z, q)
    decays = torch.exp(segment_sums(log_decay.permute(0, 3, 1, 2)))
    inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, decays, driven)
    added = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, torch.exp(total[..., -1:] - total), driven)
    states = torch.cat([torch.zeros_like(added[:, :1]), added], dim=1)
    between = torch.exp(segment_sums(F.pad(total[..., -1], (1, 0))))
    entering = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    across = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, entering, torch.exp(total))
    return (inside + across).flatten(1, 2)[:, :length] + D[:, None] * x


def segment_sums(t: Tensor) -> Tensor:
    """``(…, q)`` to ``(…, q, q)``: the sum of what lies behind column j up to row i, -inf where j > i."""
    size = t.shape[-1]
    repeated = t[..., None].expand(*t.shape, size)  # (…, i, j) = t_i
    below = torch.ones(size, size, dtype=torch.bool, device=t.device).tril(-1)
    sums = repeated.masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(below.mT, -math.inf)


def floor(setting: Setting) -> Callable[[], object]:
    """The products of backend "torch" alone: C Bᵀ, that by x, Bᵀ x and C by the states, for chunks of its size."""
    x = inputs(setting)[0]
    b, length, heads, _ = x.shape
    chunk = length if length <= 64 else 32
    chunks, width = -(-length // chunk), heads // DIRECTIONS * HEAD
    C, B = torch.randn(2, b * DIRECTIONS, chunks, chunk, STATES).unbind()
    u, states = torch.randn(b * DIRECTIONS, chunks, chunk, width), torch.randn(b * DIRECTIONS, chunks, STATES, width)

    def products() -> None:
        (C @ B.mT) @ u
        B.mT @ u
        if chunks > 1:
            C @ states

    return products


def candidate(name: str, setting: Setting) -> Callable[[], object]:
    """What is timed; raises where it is off."""
    if name == "floor":
        return floor(setting)
    run = {"vmamba": ssd_scan, "products": partial(ssd_scan, backend="torch"), "plain": plain}[name]
    leaves = [t.requires_grad_(setting.backward) for t in inputs(setting)]
    check(run, setting)
    if not setting.backward:
        return lambda: run(*leaves)
    weight = torch.randn_like(leaves[0])
    return lambda: torch.autograd.grad(run(*leaves), leaves, weight)


def check(run: Callable[..., Tensor], setting: Setting) -> None:
    """Raise unless output, and gradients where asked, are the recurrence's."""
    results = []
    for call, dtype in ((run, torch.float32), (lambda *t: ssd_scan_reference(*t)[0], torch.float64)):
        leaves = [t.to(dtype).requires_grad_(setting.backward) for t in inputs(setting)]
        y = call(*leaves)
        weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        results.append([y.detach(), *(torch.autograd.grad(y, leaves, weights) if setting.backward else ())])
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        error = float((got - want).abs().max() / want.abs().max())
        if not error < 1e-4:
            raise SystemExit(f"result {i} is off by {error:.1e} of scale")


def work(pipe: Connection, name: str, setting: Setting, threads: int) -> None:
    """One candidate's process: build and check, then time one run a request."""
    torch.set_num_threads(threads)
    with torch.set_grad_enabled(setting.backward):
        run = candidate(name, setting)
        run()
        pipe.send(True)
        while pipe.recv():
            run()  # the threads of the candidate before have stopped spinning by then
            start = time.perf_counter()
            run()
            pipe.send(time.perf_counter() - start)


def measured(setting: Setting, threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each candidate, in turns."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in CANDIDATES:
        if name == "floor" and setting.backward:
            continue
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, name, setting, threads), daemon=True)
        process.start()
        theirs.close()
        pipes[name].recv()  # one after the other: building is work too
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv() * 1e3)
    for pipe in pipes.values():
        pipe.send(False)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    options = parser.parse_args()
    print(f"{options.threads} threads, {options.rounds} rounds, {'both ways' if options.backward else 'forward'}")
    for stage, channels in enumerate(STAGES):
        setting = Setting(options.batch, options.size, stage, options.backward)
        times = measured(setting, options.threads, options.rounds)
        best = {name: min(each) for name, each in times.items()}
        b, length, heads, _ = inputs(setting)[0].shape
        print(
            f"stage {stage}: {channels} channels, (b, l, h, p, g, n) = {(b, length, heads, HEAD, DIRECTIONS, STATES)}"
        )
        for name, each in times.items():
            ratio = f"{best[name] / best['vmamba']:.2f} × vmamba's"
            print(f"  {name:8} best {best[name]:8.2f} ms  median {statistics.median(each):8.2f} ms  {ratio}")


if __name__ == "__main__":
    main()
