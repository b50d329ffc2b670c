"""What networks cost: upstream's published figures, torch's own counter on a real run, every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vmamba
from vmamba.analysis.flops import parse_size, short
from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.architecture.variants import VARIANTS
from vmamba.cli.main import main
from vmamba.errors import CheckpointError, ConfigError

TINY = {"dims": [8, 16], "depths": [1, 1], "num_classes": 3}


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.published])
def test_published_classifiers(name: str) -> None:
    published = VARIANTS[name].published
    assert published is not None
    found = vmamba.count(name, 224)
    assert round(found.fvcore / 1e9, 1) == published.flops_g  # in all its digits
    assert found.fvcore == pytest.approx(published.flops_g * 1e9, rel=0.015)
    assert found.parameters == pytest.approx(published.params_m * 1e6, abs=0.5e6)


@pytest.mark.parametrize("name", [name for name, variant in SEGMENTERS.items() if variant.published])
def test_published_segmenters(name: str) -> None:
    published = SEGMENTERS[name].published
    assert published is not None
    found = vmamba.count(name, (512, 2048))
    assert found.fvcore == pytest.approx(published.flops_g * 1e9, rel=0.002)
    assert found.parameters == pytest.approx(published.params_m * 1e6, abs=0.5e6)


@pytest.mark.parametrize(("backbone", "published"), [("tiny_s1l8", 271), ("small_s2l15", 349), ("base_s2l15", 485)])
def test_published_detectors(backbone: str, published: int) -> None:
    """Table 2 of arXiv 2401.10166, at 800×1280; with 1000 proposals and 100 detections."""
    found = vmamba.count(f"mask_rcnn_vmamba_{backbone}")
    assert (found.size, found.regions) == ((800, 1280), (1000, 100))
    assert round(found.fvcore / 1e9) == published


@pytest.mark.parametrize(
    ("layer", "operations"),
    [
        (nn.GroupNorm(2, 4), 5 * 4 * 30),
        (nn.LayerNorm(5), 5 * 4 * 30),
        (nn.LayerNorm(5, elementwise_affine=False), 4 * 4 * 30),
        (nn.BatchNorm2d(4), 2 * 4 * 30),
        (nn.BatchNorm2d(4, affine=False), 4 * 30),
        (nn.InstanceNorm2d(4), 4 * 4 * 30),
        (nn.Upsample(scale_factor=2), 4 * 120),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 4 * 4 * 120),
        (nn.AdaptiveAvgPool2d(2), 4 * 30),
        (nn.ReLU(), 0),
    ],
    ids=str,
)
def test_fvcore_counts_norms_resizing_and_pooling(layer: nn.Module, operations: int) -> None:
    """Of ``(1, 4, 6, 5)``; beside a convolution of 1×1."""
    found = vmamba.count(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (6, 5))
    assert (found.macs, found.flops, found.fvcore) == (360, 720, 360 + operations)
    assert (found["1"].macs, found["1"].fvcore, found.activations) == (0, operations, 120)


@pytest.mark.parametrize(
    ("name", "size", "total"),
    [
        ("vmamba_tiny_s2l5", 224, 4_857_704_448),
        ("vmamba_nano", 224, 185_204_736),
        ("vanilla_vmamba_tiny", 224, 5_626_864_896),
        ("unet_vmamba_nano", 64, 93_202_432),
        ("fpn_vmamba_nano", 64, 27_648_640),
    ],
)
def test_fvcores_own_totals(name: str, size: int, total: int) -> None:
    """What fvcore 0.1.5 with `vmamba.analysis.handles.fvcore_handles` counted."""
    assert vmamba.count(name, size).fvcore == total


def test_a_detector_is_counted_with_its_regions() -> None:
    many = vmamba.count("mask_rcnn_vmamba_nano")
    few = vmamba.count("mask_rcnn_vmamba_nano", proposals=50, detections=10)
    assert (many.size, many.regions, few.regions) == ((800, 1280), (200, 100), (50, 10))
    assert many["roi_head.bbox_head"].flops == 4 * few["roi_head.bbox_head"].flops
    assert many["roi_head.mask_head"].flops == 10 * few["roi_head.mask_head"].flops
    assert many["backbone"] == few["backbone"]
    assert sum(many[part].flops for part in ("backbone", "neck", "rpn_head", "roi_head")) == many.flops


@pytest.mark.parametrize("forward_type", ["v05_noz", "v052dc_noz", "v0", "v3"])
def test_it_is_what_torchs_counter_finds_in_a_run(forward_type: str) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", forward_type=forward_type, ssm_d_state=2, **TINY).eval()
    found = vmamba.count(model, (48, 32))
    for backend in ("torch", None):
        with torch.no_grad(), vmamba.backend(backend), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 48, 32))
        assert counter.get_total_flops() == found.flops
    assert found.modules[0].parameters == sum(p.numel() for p in model.parameters())
    by_hand = counter.get_flop_counts()["VSSM.layers.0.blocks.0.mlp"]
    assert sum(by_hand.values()) == found["layers.0.blocks.0.mlp"].flops


def test_modules_add_up() -> None:
    found = vmamba.count("vmamba_nano")
    for field in ("parameters", "macs", "flops", "fvcore", "activations"):
        whole = getattr(found, field)
        assert whole == sum(getattr(module, field) for module in found.modules if module.depth == 1)
        assert whole == getattr(found.modules[0], field)
    assert found["layers"].flops == sum(found[f"layers.{i}"].flops for i in range(4))
    assert found["classifier.head"].macs * 2 == found["classifier.head"].flops
    assert found["classifier.head"].activations == 1000
    assert 0 < found.scan_flops < found.flops
    # d_inner channels in and out of the depthwise convolution and the scan, and two products beside.
    first, block = found["layers.0.blocks.0.op"], vmamba.create_model("vmamba_nano").layers[0].blocks[0].op
    places = (224 // 4) ** 2
    rows = 4 * (block.dt_rank + 2 * block.d_state)
    assert first.activations == places * (3 * block.d_inner + rows + block.d_model)


def test_the_model_is_left_as_it_was() -> None:
    model = vmamba.create_model("vmamba_nano", **TINY)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    vmamba.count(model, 32)
    assert model.training
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_any_network_is_counted() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    found = vmamba.count(network, (6, 5), in_chans=1)
    assert (found.parameters, found.macs, found.flops, found.activations) == (36, 1080, 2160, 120)


def test_files(colour_run: Path, tmp_path: Path) -> None:
    found = vmamba.count(colour_run)
    assert found.size == (16, 16)
    trained = vmamba.load(colour_run / "best.safetensors")
    assert found.modules == vmamba.count(trained, 16).modules
    bare = tmp_path / "bare.pth"
    torch.save({"model": vmamba.create_model("vmamba_nano").state_dict()}, bare)
    assert vmamba.count(bare).flops == vmamba.count("vmamba_nano").flops


def test_onnx_files_say_what_they_are_or_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nothing = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(nothing, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="does not say which network it was exported from"):
        vmamba.count(tmp_path / "foreign.onnx")
    config = json.dumps(vmamba.model_config("vmamba_nano").to_dict())
    onnx.helper.set_model_props(model, {"config": config, "format": "vmamba"})
    onnx.save(model, tmp_path / "ours.onnx")
    assert vmamba.count(tmp_path / "ours.onnx").flops == vmamba.count("vmamba_nano").flops


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    assert main(["flops", "vmamba_nano", "--image_size", "64x96", "--depth", "1", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "one image of 64×96 pixels" in said
    assert "patch_embed" in said
    assert "blocks" not in said
    record = json.loads(out.read_text())
    assert (record["height"], record["width"], record["regions"]) == (64, 96, None)
    assert record["modules"][0]["flops"] == vmamba.count("vmamba_nano", (64, 96)).flops
    assert main(["flops", "mask_rcnn_vmamba_nano", "--image_size", "64", "--depth", "0", "--proposals", "7"]) == 0
    assert "counted with 7 proposals and 100 detections" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vmamba_nan"], "neither a run's folder, a weight file nor a model; did you mean 'vmamba_nano'"),
        (["runs/none"], "there is no run or weight file runs/none"),
        (["vmamba_nano", "--image_size", "big"], "image_size='big': want a side"),
        (["vmamba_nano", "--depth", "-1"], "depth=-1"),
        (["vmamba_nano", "--proposals", "3"], "proposals and detections are of a detector"),
        (["mask_rcnn_vmamba_nano", "--proposals", "0"], "proposals=0: want 1 or more"),
        (["vmamba_nano", "--image_size", "2"], "cannot be counted at 2×2 pixels: "),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_optimized_model_is_refused() -> None:
    model = vmamba.create_model("vmamba_nano", **TINY).eval()
    fast = vmamba.optimize(model, example=torch.randn(1, 3, 16, 16), compile=False)
    with pytest.raises(ConfigError, match="counted as the model that it was made from"):
        vmamba.count(fast, 16)


def test_numbers_and_sizes_as_text() -> None:
    assert [short(n) for n in (0, 999, 1000, 30_249_064, 4_876_000_000, 1_893_000_000_000)] == [
        "0", "999", "1.00 k", "30.2 M", "4.88 G", "1.89 T",
    ]  # fmt: skip
    assert parse_size("224") == (224, 224)
    assert parse_size("512×2048") == (512, 2048)
