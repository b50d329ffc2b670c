"""How scans are cut, and that walks go where the scan orders say."""

from __future__ import annotations

import pytest
import torch

from vmamba.kernels.triton.scans.plan import pairs, plan, walk
from vmamba.scan.orders import SCAN_MODES, Direction, readings_of, to_sequence


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (7, 3), (14, 14), (3, 70001)])
@pytest.mark.parametrize("reading", range(8))
def test_a_walk_goes_where_the_order_says(size: tuple[int, int], reading: int) -> None:
    h, w = size
    direction = Direction(bool(reading & 1), bool(reading & 2), bool(reading & 4))
    want = to_sequence(torch.arange(h * w).view(h, w), direction)
    base, mul, shift, stride, jump = walk(reading, h, w)
    t = torch.arange(h * w)
    assert torch.equal(base + t * stride + ((t * (mul % 2**32)) >> 32 >> shift) * jump, want)
    assert -(2**31) <= mul < 2**31


@pytest.mark.parametrize("inner", [3, 5, 7, 56, 641, 2**16 + 1, 2**30 + 3])
def test_the_division_is_right_to_the_last_place(inner: int) -> None:
    _, mul, shift, _, _ = walk(1, inner, 2)
    for t in (0, inner - 1, inner, 2 * inner - 1, 2**31 - 1, (2**31 - 1) // inner * inner - 1):
        assert (t * (mul % 2**32)) >> 32 >> shift == t // inner


@pytest.mark.parametrize("mode", SCAN_MODES)
def test_every_mode_is_two_pairs(mode: str) -> None:
    assert pairs(readings_of(mode), 5, 7).backwards in (0, 0b1100)


@pytest.mark.parametrize("images", [1, 8, 128])
@pytest.mark.parametrize("length", [1, 49, 50, 196, 3136, 10**6])
def test_chunks_cover_the_walk(images: int, length: int) -> None:
    cut = plan(images, 1, length, 96, 1, 6, 132)
    assert (cut.chunks - 1) * cut.chunk < length <= cut.chunks * cut.chunk
    assert cut.chunks == 1 or (cut.chunk % cut.group == 0 and cut.chunk >= 49)
