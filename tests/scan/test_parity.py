"""Upstream's numbers for the operators, computed in float64."""

import json
import math
from pathlib import Path

import pytest
import torch
from parity_fill import fill
from safetensors.torch import load_file
from scan_cases import NAMES, check, runnable, with_gradients

from vmamba.layers.downsample import merge_patches
from vmamba.layers.patch_embed import resize_pos_embed
from vmamba.scan import selective_scan, selective_scan_reference

FOLDER = Path(__file__).parents[1] / "parity/ops"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
SCANS = MANIFEST["selective_scan"]


def draw(name, *shape):
    return torch.from_numpy(fill(name, shape, 0)).double()


def unit(name, *shape):
    return draw(name, *shape) * math.sqrt(math.prod(shape[1:]))


def scan_inputs(case):
    b, k, d, n, length = (case[letter] for letter in "BKCNL")
    channels, softplus = k * d, case["delta_softplus"]
    delta, bias = unit("delta", b, channels, length), draw("delta_bias", channels)
    return [
        unit("u", b, channels, length),
        (15.0 if case["wide"] else 0.5) * delta if softplus else 0.1 * delta.abs(),
        -torch.exp(draw("A", channels, n)),
        unit("B", b, k, n, length),
        unit("C", b, k, n, length),
        draw("D", channels) if case["has_D"] else None,
        (bias - 3 if softplus else 0.05 * bias.abs()) if case["has_delta_bias"] else None,
    ]


@pytest.mark.parametrize("case", SCANS, ids=[case["name"] for case in SCANS])
@pytest.mark.parametrize("backend", ["reference", "torch float64", *runnable("selective_scan")])
def test_selective_scan(backend, case):
    want = load_file(FOLDER / case["file"])
    values = scan_inputs(case)
    dout = unit("dout", *values[0].shape)
    exact = "float64" in backend or backend == "reference"
    if not exact:
        values = [None if v is None else v.float() for v in values]
    if backend == "reference":

        def run(*v):
            return selective_scan_reference(*v, case["delta_softplus"])
    else:

        def run(*v):
            return selective_scan(*v, case["delta_softplus"], backend=backend.split()[0])

    y, gradients = with_gradients(run, values, dout)
    check(y, want["out"], 1e-10 if exact else 1e-5, "y")
    for name, gradient in zip(NAMES, gradients, strict=True):
        if gradient is not None:
            check(gradient, want[f"d{name}"], 1e-10 if exact else 1e-4, f"d{name}")


def test_patch_merging():
    want = load_file(FOLDER / "patch_merge.safetensors")
    for case in MANIFEST["patch_merge"]:
        shape = [case[letter] for letter in "BHWC"]
        got = merge_patches(torch.arange(math.prod(shape)).reshape(shape))
        assert torch.equal(got.double(), want[case["key"]].double())


def test_positional_embedding():
    want = load_file(FOLDER / "pos_embed.safetensors")
    for case in MANIFEST["pos_embed"]:
        table = torch.from_numpy(fill("pos_embed", (1, case["channels"], case["source"], case["source"]), 0))
        got = resize_pos_embed(table, case["target"], case["target"])
        torch.testing.assert_close(got.double(), want[case["key"]].double(), rtol=1e-5, atol=1e-6)
