"""The time that the scan kernels of a model can take at best on an H100, counted from compiled code and bytes; no GPU.

    python benchmarks/gpu/expected.py [--model vmamba_tiny_s1l8] [--batch 128]

Instructions: those of the main loop, for all places, channels and directions, at one a cycle and scheduler. Bytes: what a
launch touches first, at the card's bandwidth. The larger of the two is what a launch can do at best.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

import vmamba
from vmamba.bench.kernels import compile_for
from vmamba.inference.warm import launches
from vmamba.kernels.triton.jit import Launch
from vmamba.kernels.triton.scans import launch as launching

PROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 3.35e12  # H100 SXM: schedulers are four a multiprocessor
_SIZE = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


def sizes(one: Launch) -> dict[str, int]:
    return dict(zip(one.function.arg_names, one.arguments, strict=False))


def places(one: Launch) -> int:
    """Places × channels × directions of a launch."""
    at = sizes(one)
    directions = one.constants["PAIR"] * at["groups"] if "groups" in at else at["dirs"]
    return at["images"] * at["length"] * at["channels"] * directions


def bytes_of(one: Launch) -> int:
    """What a launch reads and writes, each byte once a program."""
    at, name = sizes(one), one.function.__name__
    x, low = _SIZE[at["u"]], _SIZE[at["s"]]
    cells = at["images"] * at["length"] * at["channels"]
    directions = places(one) // cells
    blocks = -(-at["channels"] // one.constants["BC"])
    row = one.constants["R"] + 2 * at["states"]
    columns = at["images"] * at["length"] * directions * row * low * blocks
    group = one.constants.get("GROUP", 1)
    if name == "aggregates":
        return cells * x * directions // one.constants["PAIR"] + columns
    kept = cells * directions * at["states"] * 4 // group
    if name == "outputs":
        return cells * (x + 4 + 4 * at["add"]) + columns + kept * one.constants["SAVE"]
    return cells * (x + 4 + 4 + 4 * at["add"]) + columns + columns // low * 4 + kept


def rows(model: str, batch: int) -> Iterator[tuple[str, int, int, float, float]]:
    launching.processors = lambda device: PROCESSORS
    made = vmamba.create_model(model)
    compiled = {}
    for one in launches(made, (batch, 3, 224, 224), torch.bfloat16, distinct=False):
        if one.function.__name__ == "carry":
            continue
        if one.key not in compiled:
            compiled[one.key] = compile_for(one, 90)
        issue = compiled[one.key].instructions * places(one) / 32 / (PROCESSORS * 4 * CLOCK)
        at = sizes(one)
        name = one.function.__name__ + (" (adjoint)" if one.constants.get("ADJOINT") else "")
        yield name, at["length"], at["channels"], 1e6 * issue, 1e6 * bytes_of(one) / BANDWIDTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    totals: dict[tuple[str, int, int], list[float]] = {}
    for name, length, channels, issue, memory in rows(options.model, options.batch):
        total = totals.setdefault((name, length, channels), [0, 0.0, 0.0, 0.0])
        total[0] += 1
        for i, value in enumerate((issue, memory, max(issue, memory)), 1):
            total[i] += value
    print(
        "| kernel | places × channels | launches | instructions µs | bytes µs | at best µs |\n|---|---|---|---|---|---|"
    )
    for (name, length, channels), (count, issue, memory, best) in sorted(totals.items(), key=lambda one: one[0][2]):
        print(f"| {name} | {length} × {channels} | {count} | {issue:.0f} | {memory:.0f} | {best:.0f} |")
    print()
    for way, names in (("forward", ("aggregates", "outputs")), ("backward", ("aggregates (adjoint)", "gradients"))):
        print(f"{way}, all blocks: {sum(row[3] for key, row in totals.items() if key[0] in names) / 1e3:.2f} ms")


if __name__ == "__main__":
    main()
