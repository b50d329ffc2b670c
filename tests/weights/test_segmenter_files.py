"""Segmenters' weight files: recognised, loaded, adapted; the backbone out of them; OpenMMLab's container."""

from __future__ import annotations

import json
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vmamba
from vmamba.cli.main import main
from vmamba.heads import Segmenter
from vmamba.weights import OFFICIAL, OfficialWeights

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


def small(name: str = "upernet_vmamba_nano", **options: Any) -> Segmenter:
    model: Segmenter = vmamba.create_model(name, **{"num_classes": 3, **SMALL, **options})
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes as mmengine's checkpoints have them, in modules of its names, which are gone when a test reads."""

    def made(module: str, name: str, *bases: type) -> type:
        kind = type(name, bases, {"__module__": module})
        for i in range(module.count(".") + 1):
            part = module.rsplit(".", i)[0]
            monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or types.ModuleType(part))
        setattr(sys.modules[module], name, kind)
        return kind

    return {
        "buffer": made("mmengine.logging.history_buffer", "HistoryBuffer"),
        "dict": made("mmengine.config.config", "ConfigDict", dict),
        "config": made("mmengine.config.config", "Config"),
    }


def container(weights: dict[str, Tensor], tools: dict[str, type]) -> dict[str, Any]:
    history = tools["buffer"]()
    history.values, history.mean = np.arange(3.0), np.float64(2.0)
    config = tools["config"]()
    config.inner = tools["dict"](model=tools["dict"](type="EncoderDecoder"))
    return {
        "meta": {"iter": 160000, "cfg": "text", "config": config, "palette": np.zeros((2, 3), np.uint8)},
        "state_dict": OrderedDict(weights),
        "message_hub": {"log_scalars": OrderedDict(loss=history), "runtime_info": tools["dict"](iter=3)},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(6e-5)}]},
        "param_schedulers": [],
    }


@pytest.mark.parametrize("where", ["", "module."])
def test_mmengines_container(
    where: str, tools: dict[str, type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = small(), tmp_path / "iter_160000.pth"
    torch.save(container({where + name: value for name, value in model.state_dict().items()}, tools), path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)
    loaded = vmamba.load(path)
    assert type(loaded) is vmamba.UPerNet
    assert not loaded.training
    assert same(loaded, model)
    backbone = vmamba.Backbone_VSSM(config=model.config.backbone, pretrained=path)
    assert same(backbone, model.backbone)
    assert "mmengine" not in sys.modules


def test_a_detectors_container_gives_its_backbone(tools: dict[str, type], tmp_path: Path) -> None:
    model = small()
    beside = {"neck.lateral_convs.0.conv.weight": torch.zeros(2, 2, 1, 1), "rpn_head.rpn_conv.weight": torch.zeros(2)}
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    torch.save(container({**weights, **beside}, tools), tmp_path / "epoch_12.pth")
    backbone = vmamba.Backbone_VSSM(config=model.config.backbone, pretrained=tmp_path / "epoch_12.pth")
    assert same(backbone, model.backbone)


class Trap:
    """What an attacker would put in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_code_beside_a_tools_objects_is_refused(
    tools: dict[str, type], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("meta", "message_hub"):
        content = container(small().state_dict(), tools)
        content[place]["trap"] = Trap()
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(vmamba.CheckpointError, match=r"carries code \(.*print\)"):
            vmamba.load(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


def test_what_stands_for_a_tools_object_does_nothing(tools: dict[str, type], tmp_path: Path) -> None:
    kind = tools["buffer"]
    trap = kind()
    kind.__reduce__ = lambda self: (kind, (), {"x": 1})  # type: ignore[method-assign]
    torch.save({"state_dict": {"a": torch.ones(1)}, "trap": trap}, tmp_path / "w.pth")
    content = vmamba.weights.files.read_content(tmp_path / "w.pth")
    assert vars(content["trap"]) == {}  # type: ignore[index]


@pytest.mark.parametrize("name", ["upernet_vmamba_nano", "unet_vmamba_nano", "fpn_vmamba_nano"])
def test_bare_weights_are_recognised(name: str, tmp_path: Path) -> None:
    whole = vmamba.create_model(name, num_classes=4, in_chans=2).eval()
    vmamba.save_weights(tmp_path / "w.pth", whole.state_dict())
    loaded = vmamba.load(tmp_path / "w.pth")
    assert loaded.config == whole.config
    assert same(loaded, whole)
    assert vmamba.weights.recognise_segmenter(whole.state_dict()).name == name


def test_a_file_that_says_its_configuration_is_believed(tmp_path: Path) -> None:
    model = small("unet_vmamba_nano", forward_type="v051d_noz")
    described = {"config": json.dumps(model.config.to_dict()), "model": "unet_vmamba_nano"}
    vmamba.save_weights(tmp_path / "w.safetensors", model.state_dict(), described)
    assert vmamba.load(tmp_path / "w.safetensors").config == model.config
    vmamba.save_weights(tmp_path / "w.safetensors", model.state_dict(), {"config": '{"decode_head": 3}'})
    with pytest.raises(vmamba.CheckpointError, match="the configuration in its metadata cannot be read"):
        vmamba.load(tmp_path / "w.safetensors")


def test_old_names_and_matrices_stored_as_convolutions(tmp_path: Path) -> None:
    options = {"patchembed_version": "v1", "downsample_version": "v1", "mlp_ratio": 0.0, "forward_type": "v0"}
    model = small(**options, ssm_conv_bias=True, ssm_ratio=2.0, ssm_d_state=4)
    old = {}
    for name, value in model.state_dict().items():
        for new, before in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            ("blocks.0.norm.", "blocks.0.ln_1."),
            (".op.", ".self_attention."),
        ):
            name = name.replace(new, before) if name.startswith("backbone.") else name
        old[name] = value[..., None, None] if name.endswith("_proj.weight") else value
    assert sum(name not in model.state_dict() for name in old) > 30
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    assert same(vmamba.load(tmp_path / "old.pth"), model)


def test_adapted_to_other_classes_channels_and_heads(tmp_path: Path) -> None:
    model = small()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    other = small(num_classes=5, in_chans=1, pretrained=tmp_path / "w.pth")
    assert torch.equal(other.decode_head.bottleneck.conv.weight, model.decode_head.bottleneck.conv.weight)
    summed = model.backbone.patch_embed[0].weight.sum(1, keepdim=True)
    assert torch.equal(other.backbone.patch_embed[0].weight, summed)
    assert len(other.decode_head.conv_seg.bias) == len(other.auxiliary_head.conv_seg.bias) == 5
    plain = small(auxiliary_head=False, pretrained=tmp_path / "w.pth")
    assert plain.auxiliary_head is None
    assert torch.equal(plain.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)
    with pytest.raises(vmamba.CheckpointError, match=r"psp_modules\.0.*a segmenter with a UPerHead"):
        small(decode_head={"channels": 16}, pretrained=tmp_path / "w.pth")
    with pytest.raises(vmamba.CheckpointError, match="only the head differs, 3 classes there and 5 here"):
        vmamba.load_weights(small(num_classes=5), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["upernet_vmamba_nano", "unet_vmamba_nano"])
def test_a_classifier_starts_the_backbone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = vmamba.create_model("vmamba_nano", **SMALL)
    torch.save({"model": classifier.state_dict()}, tmp_path / "cls.pth")
    model = small(name, pretrained=tmp_path / "cls.pth")
    weight = classifier.layers[0].blocks[0].op.in_proj.weight
    assert torch.equal(model.backbone.layers[0].blocks[0].op.in_proj.weight, weight)
    monkeypatch.setitem(OFFICIAL, "vmamba_nano", OfficialWeights("vmamba_nano", "https://none/cls.pth"))
    monkeypatch.setattr("vmamba.weights.released.fetch_official", lambda name: tmp_path / "cls.pth")
    model = small(name, pretrained="vmamba_nano")
    assert torch.equal(model.backbone.layers[0].blocks[0].op.in_proj.weight, weight)


def test_released_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = vmamba.create_model("upernet_vmamba_nano")
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "w.pth")
    monkeypatch.setitem(
        OFFICIAL, "upernet_vmamba_nano", OfficialWeights("upernet_vmamba_nano", "https://none/w.pth", "state_dict")
    )
    monkeypatch.setattr("vmamba.weights.released.fetch_official", lambda name: tmp_path / "w.pth")
    assert same(vmamba.create_model("upernet_vmamba_nano", pretrained=True), donor)
    with pytest.raises(vmamba.CheckpointError, match="pretrained='vmamba_tiny_s1l8' starts its backbone"):
        vmamba.weights.official_weights("unet_vmamba_tiny_s1l8")


def test_the_commands_know_segmenters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["fits"], found["config"]["decode_head"]["num_classes"]) == ("segmentation", True, 3)
    assert main(["models", "upernet_vmamba_tiny", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["upernet_vmamba_tiny_s1l8"]["miou"] == 47.9
    assert rows["upernet_vmamba_tiny_s1l8"]["parameters"] == 61902572
    assert vmamba.list_models("*nano", task="segmentation") == [
        "upernet_vmamba_nano",
        "unet_vmamba_nano",
        "fpn_vmamba_nano",
    ]
    with pytest.raises(vmamba.ConfigError, match="legal: segmentation, detection, classification"):
        vmamba.list_models(task="segment")
    with pytest.raises(vmamba.ConfigError, match="did you mean 'upernet_vmamba_nano'"):
        vmamba.create_model("upernet_vmamba_nan")
