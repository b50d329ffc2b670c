"""Weights as a start for another task: what is adapted, what stays fresh, and that all else is strict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import VSSM, CheckpointError, create_model
from vmamba.weights import adapt_to, load_adapted
from vmamba.weights.adaptation import adapt_input_channels

OPTIONS = {"dims": 8, "depths": [1, 1], "num_classes": 4, "forward_type": "v05_noz", "ssm_d_state": 2}


def make(**options: object) -> VSSM:
    return VSSM(**{**OPTIONS, **options})


def same_but(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *names: str) -> bool:
    return all(name in names or torch.equal(a[name], b[name]) for name in a)


HEAD = ("classifier.head.weight", "classifier.head.bias")


@pytest.mark.parametrize(("given", "want"), [(4, 7), (0, 7), (4, 4), (4, 0), (0, 0)])
def test_the_head_is_fresh_where_the_classes_differ(given: int, want: int) -> None:
    weights, model = make(num_classes=given).state_dict(), make(num_classes=want)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_adapted(model, weights)
    after = model.state_dict()
    assert all(torch.equal(after[name], weights[name]) for name in after if name not in HEAD)
    for name in HEAD:
        assert (name in after) == (want > 0)
        if want:
            assert torch.equal(after[name], (weights if given == want else before)[name])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("given", "want"), [(3, 1), (3, 3), (3, 6), (1, 3), (1, 1), (4, 8)])
def test_images_of_equal_channels_give_what_they_gave(given: int, want: int, version: str) -> None:
    torch.manual_seed(given * 10 + want)
    theirs = make(in_chans=given, patchembed_version=version).double().eval()
    ours = make(in_chans=want, patchembed_version=version).double().eval()
    load_adapted(ours, theirs.state_dict())
    grey = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    a, b = ours(grey.expand(-1, want, -1, -1)), theirs(grey.expand(-1, given, -1, -1))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert same_but(ours.state_dict(), theirs.state_dict(), "patch_embed.0.weight")


def test_channels_repeat_in_turn_and_keep_the_dtype() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert adapt_input_channels(weight, 5).flatten().tolist() == pytest.approx([0.6, 1.2, 2.4, 0.6, 1.2])
    assert adapt_input_channels(weight, 1).flatten().tolist() == [7.0]
    assert adapt_input_channels(weight.half(), 2).dtype == torch.float16


def test_timm_adapts_input_channels_alike() -> None:
    from timm.models import adapt_input_conv

    weight = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for channels in (1, 2, 3, 4, 7):
        ours = adapt_input_channels(weight, channels) if channels != 3 else weight
        assert torch.allclose(ours, adapt_input_conv(channels, weight), rtol=1e-6)


def test_the_positional_embedding_is_resized() -> None:
    small, large = make(posembed=True, imgsize=32), make(posembed=True, imgsize=64)
    load_adapted(large, small.state_dict())
    want = torch.nn.functional.interpolate(small.pos_embed, size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(large.pos_embed, want)


@pytest.mark.parametrize(
    ("options", "drop", "words"),
    [
        ({"dims": 16}, "", "another shape: patch_embed.0.weight"),
        ({"mlp_ratio": 0.0}, "", "unexpected: layers.0.blocks.0.norm2.weight"),
        ({"posembed": True}, "", "1 missing: pos_embed"),
        ({"num_classes": 9}, "classifier.norm.bias", "1 missing: classifier.norm.bias"),
        ({}, "classifier.head.bias", "1 missing: classifier.head.bias"),
        ({"patchembed_version": "v2", "in_chans": 1}, "", "unexpected|another shape"),
    ],
)
def test_all_else_is_strict_and_the_model_is_left_alone(options: dict[str, object], drop: str, words: str) -> None:
    weights, model = make().state_dict(), make(**options)
    weights.pop(drop, None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_adapted(model, weights)
    assert same_but(model.state_dict(), before)


def test_adapting_changes_neither_weights_nor_model() -> None:
    weights, model = make().state_dict(), make(num_classes=9, in_chans=1)
    copies = [{name: value.clone() for name, value in part.items()} for part in (weights, model.state_dict())]
    adapted = adapt_to(weights, model)
    assert adapted.keys() == model.state_dict().keys()
    assert same_but(weights, copies[0])
    assert same_but(model.state_dict(), copies[1])


def test_create_model_starts_from_a_file(tmp_path: Path) -> None:
    theirs = create_model("vmamba_nano", num_classes=5)
    ema = {name: value + 1 for name, value in theirs.state_dict().items()}
    torch.save({"model": theirs.state_dict(), "model_ema": ema}, tmp_path / "nano.pth")
    ours = create_model("vmamba_nano", pretrained=tmp_path / "nano.pth", num_classes=3, in_chans=1)
    assert ours.training
    assert ours.classifier.head.weight.shape[0] == 3
    assert same_but(ours.state_dict(), theirs.state_dict(), *HEAD, "patch_embed.0.weight")
    ours = create_model("vmamba_nano", pretrained=str(tmp_path / "nano.pth"), num_classes=5, key="model_ema")
    assert same_but(ours.state_dict(), ema)
    with pytest.raises(CheckpointError, match=r"absent.pth does not exist"):
        create_model("vmamba_nano", pretrained=tmp_path / "absent.pth")
    with pytest.raises(vmamba.ConfigError, match="'vmamba_nan' is unknown"):
        create_model("vmamba_nan", pretrained=True)
