"""Scan orders: exact, against upstream's numbers, for every flag and layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vmamba import ConfigError, InputError, cross_merge_fn, cross_scan_fn
from vmamba.scan import cross_merge, cross_scan

FOLDER = Path(__file__).parents[1] / "parity/ops"
CASES = json.loads((FOLDER / "manifest.json").read_text())["cross_scan"]


@pytest.mark.parametrize("case", CASES, ids=[f"{case['H']}x{case['W']}-{case['key']}" for case in CASES])
def test_upstreams_numbers(case):
    b, d, h, w = (case[letter] for letter in "BCHW")
    scanning = case["kind"] == "scan"
    if scanning and not case["one_by_one"]:
        shape, to_channels_last = (b, d, h, w), (0, 2, 3, 1)
    else:
        shape, to_channels_last = (b, 4, d, h, w), (0, 3, 4, 1, 2)
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    if not case["in_channel_first" if scanning else "out_channel_first"]:
        x = x.permute(to_channels_last).contiguous()
    flags = {name: case[name] for name in ("in_channel_first", "out_channel_first", "one_by_one", "scans")}
    got = (cross_scan_fn if scanning else cross_merge_fn)(x, **flags)
    want = load_file(FOLDER / case["file"])[case["key"]]
    assert got.shape == want.shape
    assert torch.equal(got.double(), want.double())


@pytest.mark.parametrize("mode", ["cross2d", "unidi", "bidi", "rot2d"])
def test_merging_is_the_transpose_of_scanning(mode):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = torch.randn(2, 4, 3, 20, dtype=torch.float64)
    torch.testing.assert_close((cross_scan(x, mode) * y).sum(), (x * cross_merge(y, 4, 5, mode)).sum())


def test_mistakes():
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"'cross3d'.*cross2d"):
        cross_scan(x, "cross3d")
    with pytest.raises(ConfigError, match=r"7.*0 or 'cross2d'"):
        cross_scan_fn(x, scans=7)
    with pytest.raises(InputError, match=r"\(1, 2, 3, 4\).*\(b, 4, d, h, w\)"):
        cross_merge_fn(x)
    with pytest.raises(InputError, match=r"\(2, 3, 4\).*\(b, h, w, d\)"):
        cross_scan_fn(x[0], in_channel_first=False)
