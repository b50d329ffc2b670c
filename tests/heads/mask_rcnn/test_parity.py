"""Upstream's own numbers: single operations, every stage, and the way from the image to the masks."""

import json
from pathlib import Path

import parity_detection as parity
import pytest
import torch

DATA = Path(__file__).parents[2] / "parity/detection"
CASES = json.loads((DATA / "cases.json").read_text())["cases"]
KEYS = json.loads((DATA / "keys.json").read_text())


def check(rows):
    rows = list(rows)
    assert rows
    assert [row for row in rows if not row.good] == []


def test_single_operations():
    check(parity.operations(DATA))


def test_keys_of_the_official_configurations():
    check(parity.key_lists(KEYS))


@pytest.mark.parametrize("name", CASES)
def test_every_stage_and_the_whole(name):
    case = CASES[name]
    want, model = parity.load_file(DATA / case["file"]), parity.build(case)
    check(parity.stages(name, case, want, model))
    check(parity.whole(name, case, want, model))


@pytest.mark.long
def test_the_official_tiny_model():
    check(parity.full(DATA / "full_tiny_s1l8_256x320.json", KEYS))


def test_a_wrong_value_is_seen():
    name, case = next(iter(CASES.items()))
    want, model = parity.load_file(DATA / case["file"]), parity.build(case)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_reg.bias.add_(0.01)
    wrong = {row.name.split()[-1] for row in parity.stages(name, case, want, model) if not row.good}
    assert "box.bbox" in wrong
