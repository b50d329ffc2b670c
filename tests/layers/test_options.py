"""Options and inputs of the layers: upstream's arguments, strides, layouts."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

import vmamba
from vmamba import SS2D, VSSM, ConfigError, InputError, VSSBlock, VSSMConfig


def test_steps_are_drawn_as_asked() -> None:
    layer = SS2D(d_model=32, d_state=4, dt_min=0.01, dt_max=0.02, dt_scale=3.0)
    step = F.softplus(layer.dt_projs_bias.detach())
    assert 0.00999 <= step.min() < 0.012
    assert 0.018 < step.max() <= 0.0201
    bound = 3 * layer.dt_rank**-0.5
    assert 0.9 * bound < layer.dt_projs_weight.abs().max() <= bound
    floor = SS2D(d_model=32, dt_init_floor=0.05)
    assert F.softplus(floor.dt_projs_bias.detach()).min() >= 0.0499
    constant = SS2D(d_model=32, dt_init="constant")
    assert torch.equal(constant.dt_projs_weight, torch.full_like(constant.dt_projs_weight, constant.dt_rank**-0.5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dt_init": "randm"}, "did you mean 'random'"),
        ({"dt_min": 0.2}, "dt_min ≤ dt_max"),
        ({"dt_min": 0.0}, "0 < dt_min"),
        ({"dt_init_floor": -1.0}, "dt_init_floor ≥ 0"),
    ],
)
def test_steps_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SS2D(d_model=8, **options)


@pytest.mark.parametrize("channel_first", [False, True])
def test_a_block_says_which_layout_it_takes(channel_first: bool) -> None:
    block = VSSBlock(hidden_dim=8, ssm_d_state=1, channel_first=channel_first)
    other = (2, 6, 7, 8) if channel_first else (2, 8, 6, 7)
    want = r"\(b, 8, h, w\)" if channel_first else r"\(b, h, w, 8\)"
    with pytest.raises(InputError, match=f"VSSBlock takes {want}.*channel_first={channel_first}"):
        block(torch.zeros(other))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_feature_info_tells_the_real_stride(version: str, patch: int) -> None:
    model = VSSM(
        dims=(8, 16), depths=(1, 1), patch_size=patch, patchembed_version=version, downsample_version="v3",
        forward_type="v05_noz", ssm_d_state=1, num_classes=10,
    ).eval()  # fmt: skip
    maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    assert [info["reduction"] for info in model.feature_info] == [64 / one.shape[-1] for one in maps]


def test_a_rank_ratio_is_taken_and_said_to_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vmamba"):
        model = VSSM(dims=8, depths=(1, 1), ssm_rank_ratio=2.0)
    assert model.config == VSSMConfig(dims=8, depths=(1, 1))
    assert "ssm_rank_ratio is ignored" in caplog.text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("v05noz", "v05_noz"),
        ("v05_NOZ", "v05_noz"),
        ("v05-noz-onnone", "v05_noz_onnone"),
        ("v05_no_z", "v05_noz"),
        ("V052D3_oact", "v052d3_oact"),
        ("v05_nozz", "_noz"),
        ("v05_ondwconv", "_ondwconv3"),
    ],
)
def test_a_forward_type_spelt_otherwise_is_answered_with_the_right_one(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        vmamba.VSSMConfig(forward_type=given)
