"""Upstream's own numbers: every small network's outputs and gradients, the named models' logits and stages."""

from pathlib import Path

import parity_networks as parity
import pytest

import vmamba

DATA = Path(__file__).parents[1] / "parity"
SMALL = list(parity.small_cases(DATA))
FULL = parity.full_cases(DATA)


@pytest.mark.parametrize(("case", "keyset"), SMALL, ids=[case["name"] for case, _ in SMALL])
def test_small_network(case, keyset):
    errors = parity.run_small(case, keyset, DATA)
    assert errors.output <= parity.output_tolerance(case)
    assert errors.gradient <= parity.GRADIENT_TOLERANCE


@pytest.mark.parametrize("case", FULL, ids=[case["name"] for case in FULL])
@pytest.mark.long
def test_named_model(case):
    errors = parity.run_full(case, DATA, parity.full_state_keys(DATA, case["model"]))
    assert errors.output <= parity.OUTPUT_TOLERANCE
    assert errors.stages <= parity.OUTPUT_TOLERANCE


@pytest.mark.parametrize("channel_first", [False, True])
def test_backends_agree_on_a_sharp_network(channel_first):
    """What the automatic choice gives is what pure PyTorch gives."""
    case, keyset = next(
        (c, k) for c, k in SMALL if c["name"] == f"sharp_v05_noz_n4_{'ln2d' if channel_first else 'ln'}"
    )
    with vmamba.backend("torch"):
        errors = parity.run_small(case, keyset, DATA)
    assert errors.output <= parity.OUTPUT_TOLERANCE
    assert errors.gradient <= parity.GRADIENT_TOLERANCE
