"""The gate, the initial and the last state on the GPU's kernels, run by the interpreter."""

from __future__ import annotations

import pytest
import torch
from scan_cases import check
from state_cases import NAMES, both, compare, run, values_of, weights_of

import vmamba

pytestmark = pytest.mark.usefixtures("interpreted", "unwritten_is_nan")


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 4, 1, 9),  # one chunk
        (2, 2, 5, 1, 30),  # three, the last one short
        (1, 1, 6, 3, 26),  # states that fill no block
        pytest.param((1, 1, 3, 17, 30), marks=pytest.mark.long),  # several blocks of states
        pytest.param((1, 2, 33, 2, 70), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_shapes(shape: tuple[int, ...]) -> None:
    with vmamba.recorded_runs() as runs:
        compare("oflex", values_of(*shape))
    assert all("triton" in one.detail for one in runs)


@pytest.mark.parametrize(("z", "initial"), [(True, False), (False, True)])
def test_each_alone(z: bool, initial: bool) -> None:
    compare("oflex", values_of(1, 1, 4, 2, 20, z=z, initial=initial))


def test_half_precision() -> None:
    compare("oflex", values_of(1, 1, 4, 1, 20, dtype=torch.bfloat16), tolerances=(1e-5, 2e-2))


def test_pieces_equal_the_whole() -> None:
    values = values_of(1, 1, 4, 2, 37)

    def in_pieces(leaves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        u, delta, A, B, C, D, bias, z, state = leaves
        parts = []
        for at in (slice(0, 21), slice(21, 22), slice(22, 37)):
            y, state = run([u[..., at], delta[..., at], A, B[..., at], C[..., at], D, bias, z[..., at], state], "oflex")
            parts.append(y)
        return torch.cat(parts, 2), state

    weights = list(weights_of(values))
    whole = both(lambda v: run(v, "oflex"), values, *weights)
    pieces = both(in_pieces, values, *weights)
    for name, a, b in zip(("y", "last", *NAMES), (*pieces[:2], *pieces[2]), (*whole[:2], *whole[2]), strict=True):
        check(a, b.double(), 1e-5, name)
