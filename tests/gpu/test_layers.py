"""Depthwise convolution and layer norm on a GPU against plain operations in float64, and the same bits in every run."""

from __future__ import annotations

import pytest
import torch
from scan_cases import check, with_gradients
from torch import Tensor
from torch.nn import functional as F

from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.norm import layer_norm
from vmamba.kernels.triton import machine_obstacle

if machine_obstacle() is not None:
    pytest.skip(f"needs a GPU: {machine_obstacle()}", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape)))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 7, 9, 33), (1, 56, 56, 96), (3, 14, 14, 384), (1, 1, 5, 8)])
@pytest.mark.parametrize("silu", [False, True])
def test_depthwise(size: tuple[int, int, int, int], dtype: torch.dtype, silu: bool) -> None:
    channels = size[3]
    values = [normal(*size).to(dtype), normal(channels, 1, 3, 3).to(dtype) / 3, normal(channels).to(dtype)]
    weight = normal(*size)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), w, b, padding=1, groups=channels).permute(0, 2, 3, 1)
        return F.silu(y) if silu else y

    want, wanted = with_gradients(plain, [v.double() for v in values], weight.double())
    first, second = (with_gradients(lambda *v: depthwise3x3(*v, silu), values, weight) for _ in range(2))
    check(first[0], want, tolerance(dtype), "y")
    assert torch.equal(first[0], second[0])
    for got, again, right in zip(first[1], second[1], wanted, strict=True):
        check(got, right, tolerance(dtype), "gradient")
        assert torch.equal(got, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 7, 9, 33), (1, 56, 56, 96), (3, 7, 7, 768), (5, 3000)])
def test_layer_norm(size: tuple[int, ...], dtype: torch.dtype) -> None:
    values = [normal(*size), normal(size[-1]), normal(size[-1])]
    weight = normal(*size)
    want, wanted = with_gradients(
        lambda x, w, b: F.layer_norm(x, size[-1:], w, b, 1e-5), [v.double() for v in values], weight.double()
    )
    first, second = (
        with_gradients(lambda x, w, b: layer_norm(x, size[-1:], w, b, 1e-5, dtype), values, weight) for _ in range(2)
    )
    assert first[0].dtype == dtype
    check(first[0], want, tolerance(dtype), "y")
    for got, again, right in zip(first[1], second[1], wanted, strict=True):
        check(got, right, tolerance(dtype), "gradient")
        assert torch.equal(got, again)
