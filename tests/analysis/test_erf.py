"""Effective receptive fields: known ones, area ratios counted by hand, any network of timm's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vmamba
from vmamba.analysis.erf import ReceptiveField, receptive_field
from vmamba.analysis.networks import NetworkName, timm_network
from vmamba.errors import ConfigError


def test_a_convolution_sees_its_kernel() -> None:
    """Without a nonlinearity the influence is the kernel's size, whatever the image."""
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    found = receptive_field(conv.forward, [torch.randn(4, 2, 9, 9), torch.randn(1, 2, 9, 9)], "conv")
    assert (found.name, found.images) == ("conv", 5)
    want = torch.zeros(9, 9, dtype=torch.float64)
    want[3:6, 3:6] = conv.weight.detach().sum(0).abs().sum(0)
    assert torch.allclose(found.influence, want, atol=1e-6)


@pytest.mark.parametrize("share", [0.04, 0.05, 0.2, 0.36, 0.5, 1.0])
def test_areas_of_a_flat_field(share: float) -> None:
    """10×10 pixels, all alike: the centred squares have 2, 4, … pixels a side and hold 4, 16, 36, 64, 100 of them."""
    field = ReceptiveField("flat", torch.ones(10, 10, dtype=torch.float64), 1)
    side = next(k for k in (2, 4, 6, 8, 10) if k * k >= 100 * share)
    assert field.area(share) == pytest.approx((side / 10) ** 2)


def test_areas_of_a_point() -> None:
    field = ReceptiveField("point", torch.zeros(11, 11, dtype=torch.float64), 1)
    field.influence[5, 5] = 2.0
    assert field.areas() == pytest.approx(dict.fromkeys((0.2, 0.3, 0.5, 0.99), 1 / 121))
    with pytest.raises(ConfigError, match="share=0"):
        field.area(0)


def test_vmamba_sees_everything() -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano").train()
    found = receptive_field(model, [torch.randn(2, 3, 96, 96)], "vmamba_nano")
    assert (found.influence > 0).all()
    assert model.training
    segmenter_like = nn.ModuleDict({"backbone": model})
    assert receptive_field(segmenter_like, [torch.zeros(1, 3, 64, 64)]).influence.shape == (64, 64)


SMALL_SWIN = "swin_tiny_patch4_window7_224(embed_dim=8, depths=[1,1,2,1], num_heads=(1,2,4,8))"


@pytest.mark.parametrize("name", ["resnet10t", SMALL_SWIN])
def test_timm(name: str) -> None:
    network = NetworkName.parse(name).build(pretrained=False, image_size=224)
    found = receptive_field(network, [torch.randn(1, 3, 224, 224)], name)
    assert found.influence.shape == (224, 224)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert 0 < found.area(0.5) < 1


def test_names_have_options() -> None:
    swin = NetworkName.parse(SMALL_SWIN)
    assert swin == NetworkName(
        "swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": (1, 2, 4, 8)}
    )
    assert NetworkName.parse(str(swin)) == swin
    assert str(NetworkName.parse("resnet18()")) == "resnet18"
    ours = NetworkName.parse("vmamba_nano(depths=[1,1,1,1], forward_type='v052d_noz')").build(False, 64)
    assert (ours.config.depths, ours.config.forward_type) == ((1, 1, 1, 1), "v052d_noz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18(", "want a name, or with options NAME"),
        ("resnet18(1)", "want a name, or with options NAME"),
        ("resnet18(a=1)(b=2)", "want a name, or with options NAME"),
        ("resnet18(a=__import__('os'))", "want a name, or with options NAME"),
        ("resnet18(**{})", "want a name, or with options NAME"),
        ("resnet18(pretrained=True)", "pretrained is no option that can be given here"),
        ("resnet18(layers=[1],layers=[2])", "layers comes twice"),
        ("resnet18(legs=2)", r"timm cannot make feature maps of 'resnet18\(legs=2\)': .*'legs'$"),
        ("vmamba_nano(legs=2)", "legs"),
        ("nothing(legs=2)", "timm cannot make feature maps of 'nothing.*; it is no model of ours either"),
    ],
)
def test_wrong_options_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        NetworkName.parse(text).build(pretrained=False, image_size=64)
    assert "\n" not in str(error.value)


def test_mistakes() -> None:
    model = vmamba.create_model("vmamba_nano")
    with pytest.raises(ConfigError, match="none was given"):
        receptive_field(model, [])
    with pytest.raises(ConfigError, match="give one size"):
        receptive_field(model, [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 64)])
    with pytest.raises(ConfigError, match="not a map"):
        receptive_field(lambda x: x.flatten(1), [torch.zeros(1, 3, 32, 32)])
    with pytest.raises(ConfigError, match="timm cannot make feature maps of 'nothing'"):
        timm_network("nothing")
