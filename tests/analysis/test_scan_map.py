"""Scan maps: a row is the row of the explicit matrix, and rows give the layer's output again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vmamba
from vmamba.analysis.blocks import ss2d_of, trunk_of
from vmamba.analysis.scan_map import attention_matrix, scan_map, scan_row
from vmamba.errors import ConfigError
from vmamba.layers.ss2d import SS2D

MODES = ["v05_noz", "v051d_noz", "v052d_noz", "v052d3_noz", "m0_noz"]


def layer_and_input(forward_type: str, d_state: int, h: int = 5, w: int = 7) -> tuple[SS2D, Tensor]:
    torch.manual_seed(0)
    layer = SS2D(12, d_state=d_state, dt_rank=3, ssm_ratio=1.0, forward_type=forward_type, initialize="v2")
    for parameter in layer.parameters():  # so that every term of the recurrence counts
        torch.nn.init.normal_(parameter, std=0.5)
    return layer, torch.randn(1, h, w, 12)


@pytest.mark.parametrize("d_state", [1, 4])
@pytest.mark.parametrize("forward_type", MODES)
def test_rows_are_the_matrix(forward_type: str, d_state: int) -> None:
    layer, x = layer_and_input(forward_type, d_state)
    matrix = attention_matrix(layer, x).unflatten(2, (5, 7)).unflatten(-1, (5, 7))
    for place in [(0, 0), (2, 3), (4, 6), (4, 0)]:
        row = scan_row(layer, x, place).weights
        assert (row - matrix[:, :, place[0], place[1]]).abs().max() <= 1e-5 * matrix.abs().max()


@pytest.mark.parametrize("forward_type", MODES)
def test_the_matrix_is_the_layer(forward_type: str) -> None:
    layer, x = layer_and_input(forward_type, 4)
    with torch.no_grad():
        want = layer.scan(x)[0].flatten(0, 1)  # (l, d)
    inputs = x[0].flatten(0, 1)
    merged = attention_matrix(layer, x).sum(0)
    found = torch.einsum("dqt,td->qd", merged, inputs) + layer.Ds.view(4, -1).sum(0) * inputs
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_row_in_float64_is_exact() -> None:
    layer, x = layer_and_input("v05_noz", 3)
    found = scan_row(layer.double(), x.double(), (3, 2))
    assert found.weights.dtype == torch.float64
    assert torch.allclose(found.reproduced(), found.output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["vmamba_nano", "vanilla_vmamba_tiny", "vmamba_tiny_m2"])
def test_a_model(name: str) -> None:
    torch.manual_seed(1)
    small = {"depths": (1, 2), "dims": (8, 16)} if name != "vmamba_nano" else {}
    model = vmamba.create_model(name, **small).train()
    image = torch.randn(3, 64, 96)
    found = scan_map(model, image, (40, 95), stage=0)
    assert found.query == (10, 23)  # a quarter of the pixels
    assert found.weights.shape[-2:] == (16, 24)
    assert torch.allclose(found.reproduced(), found.output.to(found.weights.dtype), atol=1e-5, rtol=1e-4)
    assert model.training
    assert "scan" not in ss2d_of(model, 0, 0).__dict__
    assert found.merged().shape == (16, 24)
    assert found.per_direction().shape == (4, 16, 24)
    assert (found.per_direction() > 0).any((1, 2)).all()


def test_what_is_seen_where() -> None:
    """Rows forward see what lies before, rows backward what lies behind: the image is seen whole."""
    layer, x = layer_and_input("v05_noz", 4)
    found = scan_row(layer, x, (2, 3)).per_direction().flatten(1) > 0
    places = torch.arange(35)
    assert torch.equal(found[0], places <= 2 * 7 + 3)
    assert torch.equal(found[2], places >= 2 * 7 + 3)
    by_column = (places % 7) * 5 + places // 7
    assert torch.equal(found[1], by_column <= 3 * 5 + 2)
    assert torch.equal(found[3], by_column >= 3 * 5 + 2)


def test_mistakes() -> None:
    model = vmamba.create_model("vmamba_nano")
    image = torch.zeros(3, 32, 32)
    with pytest.raises(ConfigError, match="stage=4: the model has 4, so want -4 to 3"):
        scan_map(model, image, (0, 0), stage=4)
    with pytest.raises(ConfigError, match="block=2: stage 2 has 2"):
        scan_map(model, image, (0, 0), stage=2, block=2)
    with pytest.raises(ConfigError, match="no pixel of a 32×32 image"):
        scan_map(model, image, (0, 32))
    with pytest.raises(ConfigError, match="one image"):
        scan_map(model, torch.zeros(2, 3, 32, 32), (0, 0))
    with pytest.raises(ConfigError, match="holds 0 VMamba trunks"):
        trunk_of(torch.nn.Linear(1, 1))
    cascade = SS2D(8, forward_type="v052dc_noz")
    with pytest.raises(ConfigError, match="cascade"):
        scan_row(cascade, torch.zeros(1, 2, 2, 16), (0, 0))
