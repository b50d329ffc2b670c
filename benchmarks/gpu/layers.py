"""Depthwise convolution and layer norm beside the bytes they must move."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scans import STAGES, both_ways
from timing import Row, copy_bandwidth

from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.norm import layer_norm


def layers(batch: int) -> Iterator[Row]:
    """A row for each stage; the floor of backward reads what is saved and dy and writes dx, once."""
    bandwidth = copy_bandwidth()
    for side, d, _, _ in STAGES:
        x = torch.randn(batch, side, side, d, device="cuda")
        elements = x.numel() / bandwidth * 1e6
        half = [t.bfloat16().requires_grad_() for t in (x, torch.randn(d, 1, 3, 3, device="cuda"), x[0, 0, 0])]
        once, twice = both_ways(lambda x, w, b: depthwise3x3(x, w, b, True), half)
        yield {
            "part": "layers",
            "layer": "depthwise",
            "side": side,
            "forward µs": once,
            "backward µs": twice - once,
            "forward ÷ floor": once / (4 * elements),
            "backward ÷ floor": (twice - once) / (6 * elements),
        }
        full = [t.requires_grad_() for t in (x, torch.ones(d, device="cuda"), torch.zeros(d, device="cuda"))]
        once, twice = both_ways(lambda x, w, b, d=d: layer_norm(x, (d,), w, b, 1e-5, torch.bfloat16), full)
        yield {
            "part": "layers",
            "layer": "norm",
            "side": side,
            "forward µs": once,
            "backward µs": twice - once,
            "forward ÷ floor": once / (6 * elements),
            "backward ÷ floor": (twice - once) / (10 * elements),
        }
