"""A U-shaped segmenter written against mamba-ssm (tests/integrations/mamba_ssm/derived/vmunet.py) on the stand-ins.

    python benchmarks/derived_segmenter.py [--threads 2] [--rounds 7] [--train]

Four stages down and four up, two blocks each, 16 states, 256×256: what such a project has by default, with half of its
channels by default (--width 96 for all). Both backends in turns in one process, behind a comparison of what they give.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

import vmamba
from vmamba.integrations.mamba_ssm import standing_in

PROGRAM = Path(__file__).parents[1] / "tests/integrations/mamba_ssm/derived/vmunet.py"


def segmenter(width: int) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("vmunet", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    with standing_in():
        spec.loader.exec_module(program)
    torch.manual_seed(0)
    dims = [width * 2**i for i in range(4)]
    return program.Segmenter(classes=1, dims=dims, depths=[2, 2, 2, 2], d_state=16, early=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--train", action="store_true", help="a training step's forward and backward, not inference")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, image = segmenter(options.width).train(options.train), torch.randn(1, 3, 256, 256)
    weights = list(model.parameters())

    def run(backend: str) -> list[torch.Tensor]:
        with vmamba.backend(backend):
            if not options.train:
                with torch.no_grad():
                    return [model(image)]
            logits = model(image)
            loss = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
            return [logits.detach(), *torch.autograd.grad(loss, weights)]

    with vmamba.recorded_runs() as runs:
        got, want = run("oflex"), run("torch")
    assert {each.backend for each in runs} == {"oflex", "torch"}
    scale = [float(t.abs().max()) for t in want]
    scale[1:] = [max(scale[1:], default=0.0)] * len(scale[1:])
    apart = max(float((a - b).abs().max()) / s for a, b, s in zip(got, want, scale, strict=True))
    assert apart < 1e-4, apart

    times: dict[str, list[float]] = {"oflex": [], "torch": []}
    for _ in range(options.rounds):
        for backend, taken in times.items():
            start = time.perf_counter()
            run(backend)
            taken.append(time.perf_counter() - start)
    what = "a training step" if options.train else "an image"
    millions = sum(p.numel() for p in weights) / 1e6
    print(f"{millions:.1f} M parameters, {options.threads} threads, {options.rounds} rounds; apart {apart:.1e}")
    for backend, taken in times.items():
        print(f"  {backend}  {median(taken):.2f} s {what} (best {min(taken):.2f}, worst {max(taken):.2f})")
    ratios = sorted(b / a for a, b in zip(times["oflex"], times["torch"], strict=True))
    print(f"  torch / oflex  {median(ratios):.1f} (rounds: {ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
