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
from vmamba.scan import selective_scan, selective_scan_reference, ssd_scan, ssd_scan_reference

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


def ssd_inputs(case):
    b, length, g, h, p, n = (case[letter] for letter in "BLGHPN")
    values = {
        "x": unit("x", b, length, h, p),
        "dt": 0.5 * unit("dt", b, length, h),
        "A": -torch.exp(0.5 * unit("A", 1, h)[0]),
        "B": unit("B", b, length, g, n),
        "C": unit("C", b, length, g, n) / math.sqrt(n),
        "D": draw("D", h, p),
        "dt_bias": draw("dt_bias", h) - 3,
    }
    return values | ({"initial_states": unit("initial_states", b, h, p, n)} if case["has_initial_states"] else {})


@pytest.mark.parametrize("case", MANIFEST["ssd"], ids=[case["name"] for case in MANIFEST["ssd"]])
@pytest.mark.parametrize("how", ["reference", "float64", "float32", "chunk of 5"])
def test_ssd_scan(how, case):
    want = load_file(FOLDER / case["file"])
    dtype = torch.float32 if how == "float32" else torch.float64
    leaves = {name: value.to(dtype).requires_grad_() for name, value in ssd_inputs(case).items()}
    if how == "reference":
        y, last = ssd_scan_reference(**leaves, dt_softplus=True)
    else:
        chunk = 5 if how == "chunk of 5" else None
        y, last = ssd_scan(**leaves, dt_softplus=True, return_final_states=True, chunk_size=chunk)
    gradients = torch.autograd.grad((y.double() * unit("dout", *y.shape)).sum(), list(leaves.values()))
    exact = how != "float32"
    check(y, want["out"], 1e-10 if exact else 1e-5, "y")
    check(last, want["final_state"], 1e-10 if exact else 1e-5, "final_state")
    for name, gradient in zip(leaves, gradients, strict=True):
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
