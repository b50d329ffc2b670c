"""Segmenters: upstream's numbers and keys, every decoder at every size, configurations, losses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import parity_segmentation as parity
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vmamba
from vmamba.architecture.segmenter_variants import SEGMENTERS, segmenter_config
from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.functional.pyramid import convolve_pyramid
from vmamba.heads import SegmentationModel, Segmenter, UPerNet, build_segmenter, segmentation_loss

DATA = Path(__file__).parents[1] / "parity/segmentation"
CASES = parity.small_cases(DATA)
OFFICIAL = json.loads((DATA / "keys.json").read_text())
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.0}
DECODERS = ("upernet", "unet", "fpn")


def small(decoder: str, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(segmenter_config(f"{decoder}_vmamba_nano", **{"num_classes": 3, **SMALL, **options}))


# ---- upstream's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_upstreams_numbers(name: str) -> None:
    result = parity.run_small(name, CASES[name], DATA)
    assert len(result.errors) >= 6  # four tensors at least, two losses
    assert result.good, result.errors


def test_a_wrong_weight_is_noticed() -> None:
    """The comparison itself: half a percent of one convolution is far beyond the tolerance."""
    case = CASES["small_odd_104x136"]
    model = vmamba.UPerNet(case["backbone"], case["decode_head"], case["auxiliary_head"]).eval()
    vmamba.load_weights(model, parity.dense_weights(case["keys"], case["seed"]))
    want = parity.load_file(DATA / case["file"])["decode.logits"]
    assert parity.relative(parity.outputs(model, case)[0]["decode.logits"], want) < 2e-5
    with torch.no_grad():
        model.decode_head.fpn_convs[1].conv.weight.mul_(1.005)
    assert parity.relative(parity.outputs(model, case)[0]["decode.logits"], want) > 1e-4


@pytest.mark.parametrize("structure", OFFICIAL["models"])
def test_keys_of_upstreams_configurations(structure: str) -> None:
    """Names and shapes of all, and of the heads in upstream's order; of the rest the OpenMMLab tests show it."""
    facts = OFFICIAL["models"][structure]
    heads = {name: dict(head) for name, head in OFFICIAL["heads"].items()}
    heads["decode_head"]["in_channels"] = facts["decode_head_in_channels"]
    heads["auxiliary_head"]["in_channels"] = facts["auxiliary_head_in_channels"]
    with torch.device("meta"):
        model = UPerNet(facts["backbone"], **heads)
        name = f"upernet_vanilla_vmamba_{structure[8:]}" if "vanilla" in structure else f"upernet_vmamba_{structure}"
        named = vmamba.create_model(name)
    rows = [f"{key} {list(value.shape)}" for key, value in model.state_dict().items()]
    assert len(rows) == facts["keys"]
    assert digest(sorted(rows)) == facts["sorted"]
    assert digest([row for row in rows if not row.startswith("backbone.")]) == facts["heads"]
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    # The named vanilla models are of the forward type v0, with the same keys in another order.
    assert sorted(f"{key} {list(value.shape)}" for key, value in named.state_dict().items()) == sorted(rows)
    assert named.config.backbone.drop_path_rate == facts["backbone"]["drop_path_rate"]
    assert named.config.decode_head == model.config.decode_head
    assert named.config.auxiliary_head == model.config.auxiliary_head
    assert vmamba.weights.official_weights(name).url == facts["checkpoint"]


def digest(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


# ---- every decoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(64, 64), (33, 71)])
@pytest.mark.parametrize("options", [{}, {"patchembed_version": "v1", "downsample_version": "v2"}], ids=["up", "down"])
def test_any_size_and_gradients_everywhere(decoder: str, size: tuple[int, int], options: dict[str, str]) -> None:
    model = small(decoder, in_chans=2, **options)
    assert isinstance(model, SegmentationModel)
    image = torch.randn(2, 2, *size)
    assert model(image).shape == (2, 3, *size)
    decoded, auxiliary = model.logits(image)
    assert auxiliary is not None
    target = torch.randint(0, 3, (2, *size))
    (segmentation_loss(decoded, target) + 0.4 * segmentation_loss(auxiliary, target)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_who_has_an_auxiliary_head() -> None:
    having = {name for name, variant in SEGMENTERS.items() if variant.auxiliary_head is not None}
    assert having == {name for name in SEGMENTERS if name.startswith("upernet") or name.endswith("_nano")}
    assert small("unet", auxiliary_head=False).logits(torch.randn(1, 3, 32, 32))[1] is None


@pytest.mark.parametrize("decoder", DECODERS)
def test_forward_is_the_decode_logits_at_the_images_size(decoder: str) -> None:
    model = small(decoder).eval()
    image = torch.randn(1, 3, 45, 70)
    want = F.interpolate(model.logits(image)[0], (45, 70), mode="bilinear", align_corners=False)
    assert torch.equal(model(image), want)


@pytest.mark.parametrize(("patch", "stems"), [(2, 0), (4, 1), (8, 2)])
def test_the_u_net_has_a_skip_at_every_stride(patch: int, stems: int) -> None:
    widths = (16,) * (4 + stems)
    head = {"decoder_channels": widths}
    model = small("unet", patch_size=patch, patchembed_version="v1", decode_head=head)
    assert len(model.decode_head.stem) == stems
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 3, 64, 96)


def test_what_a_decoder_cannot_be_built_on() -> None:
    with pytest.raises(vmamba.ConfigError, match="must have 5 widths"):
        small("unet", decode_head={"decoder_channels": (8, 8)})
    with pytest.raises(vmamba.ConfigError, match="FPN takes four maps, given 3"):
        small("fpn", depths=(1, 1, 1), dims=(8, 16, 24))
    with pytest.raises(vmamba.InputError, match="batch norm a single value"):
        small("upernet").train()(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("size", [(32, 24), (13, 17), (7, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_convolution_of_a_pyramid(size: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = [
        torch.randn(2, channels, -(-size[0] // step), -(-size[1] // step), dtype=dtype, requires_grad=True)
        for channels, step in ((3, 1), (4, 1), (5, 2), (2, 4), (6, 8))
    ]
    weight = torch.randn(7, 20, 3, 3, dtype=dtype, requires_grad=True)
    bias = torch.randn(7, dtype=dtype)
    joined = [maps[0], *(F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps[1:])]
    want = F.conv2d(torch.cat(joined, 1), weight, bias, padding=1)
    got = convolve_pyramid(maps, weight, bias)
    # Sums of 180 products in another order; the resize's own weights are computed in float32.
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(want)
    of_got, of_want = (torch.autograd.grad(each, [*maps, weight], upstream) for each in (got, want))
    for one, other in zip(of_got, of_want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_loss_counts_ignored_pixels_in_its_divisor() -> None:
    logits = torch.randn(2, 4, 5, 6)
    target = torch.randint(0, 4, (2, 10, 12))
    target[:, :5] = 255
    resized = F.interpolate(logits, (10, 12), mode="bilinear", align_corners=False)
    mean = F.cross_entropy(resized, target, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, target), mean / 2)
    assert segmentation_loss(logits.bfloat16(), target).dtype == torch.float32
    assert float(segmentation_loss(logits, torch.full_like(target, 255))) == 0.0
    with pytest.raises(vmamba.InputError, match="given"):
        segmentation_loss(logits, target[:1])


# ---- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_configuration_comes_back_from_json(name: str) -> None:
    config = segmenter_config(name, num_classes=7, in_chans=5)
    assert (config.num_classes, config.in_chans) == (7, 5)
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_is_changed_in_parts() -> None:
    config = segmenter_config("upernet_vmamba_nano")
    changed = config.replace(decode_head={"channels": 32}, auxiliary_head=False, depths=(1, 1, 1), dims=(8, 16, 24))
    assert (changed.decode_head.channels, changed.auxiliary_head, changed.in_channels) == (32, None, (8, 16, 24))
    assert changed.decode_head.pool_scales == config.decode_head.pool_scales
    with pytest.raises(vmamba.ConfigError, match=r"'chanels'.*did you mean 'channels'"):
        config.replace(decode_head={"chanels": 3})


def test_an_auxiliary_head_of_another_form() -> None:
    case = CASES["small_128x96"]
    head = {**case["auxiliary_head"], "in_index": [1], "in_channels": [32], "num_convs": 2, "concat_input": True}
    model = UPerNet(case["backbone"], case["decode_head"], head)
    assert model.logits(torch.randn(2, 3, 64, 64))[1].shape == (2, 5, 8, 8)
    found = vmamba.weights.recognise_segmenter(model.state_dict()).config
    assert found.auxiliary_head == model.config.auxiliary_head
    assert UPerNet(case["backbone"], case["decode_head"], None).auxiliary_head is None


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("decode_head", {"in_channels": [1, 2, 3, 4]}, r"in_channels \[1, 2, 3, 4\] does not go with the other parts"),
        ("decode_head", {"type": "UPerHed"}, "did you mean 'UPerHead'"),
        ("decode_head", {"type": "FPN"}, "in_channels"),
        ("decode_head", {"align_corners": True}, "align_corners True is not built here"),
        ("decode_head", {"norm_cfg": {"type": "GN"}}, "want type BN or SyncBN"),
        ("decode_head", {"chanels": 4}, "did you mean 'channels'"),
        ("decode_head", {"num_classes": 6}, "num_classes"),
        ("auxiliary_head", {"in_index": 4}, "in_index 4"),
        ("auxiliary_head", {"kernel_size": 2}, "kernel_size 2 must be odd"),
        ("backbone", {"type": "ResNet"}, "want MM_VSSM or Backbone_VSSM"),
        ("backbone", {"depth": 3}, "did you mean 'depths'"),
    ],
)
def test_mistakes_in_the_dicts(part: str, change: dict[str, Any], message: str) -> None:
    case = CASES["small_128x96"]
    parts = {name: dict(case[name]) for name in ("backbone", "decode_head", "auxiliary_head")}
    if change.get("type") == "FPN":
        parts[part] = {**change, "in_channels": [1, 1, 1, 1]}
    else:
        parts[part] |= change
    with pytest.raises(vmamba.ConfigError, match=message):
        UPerNet(**parts)


def test_openmmlabs_words_about_training_are_left_out() -> None:
    case = CASES["small_128x96"]
    more = {"loss_decode": {"type": "CrossEntropyLoss"}, "norm_cfg": {"type": "SyncBN"}, "align_corners": False}
    model = UPerNet(
        {"type": "MM_VSSM", "out_indices": (0, 1, 2, 3), **case["backbone"]},
        {"type": "UPerHead", "in_index": [0, 1, 2, 3], **more, **case["decode_head"]},
        {"type": "FCNHead", **more, **case["auxiliary_head"]},
    )
    assert model.config == UPerNet(case["backbone"], case["decode_head"], case["auxiliary_head"]).config


def test_batch_norm_can_be_synchronised() -> None:
    """Distributed training converts it; keys and values stay."""
    model = small("upernet")
    keys = list(model.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert list(converted.state_dict()) == keys
