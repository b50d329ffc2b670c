"""A network is recognised by the names and shapes of its weights, in every naming, and told apart from others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import VSSM, CheckpointError, VSSMConfig, create_model, infer_config, list_models, save_weights
from vmamba.layers.forward_type import ForwardType
from vmamba.models import VARIANTS
from vmamba.weights import recognise, translate_keys
from vmamba.weights.misfits import find_misfits

PARITY = Path(__file__).parents[1] / "parity"
PUBLISHED = json.loads((PARITY / "models.json").read_text())["models"]
SMALL = json.loads((PARITY / "small/manifest.json").read_text())
BASE = {"dims": (8, 24), "depths": (1, 2), "num_classes": 4, "forward_type": "v2_noz", "ssm_d_state": 2}


def on_meta(config: VSSMConfig) -> VSSM:
    with torch.device("meta"):
        return VSSM(config)


def meta_state(keyset: list) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in keyset}


@pytest.mark.parametrize("name", list_models(task="classification"))
def test_named_models_come_back_as_themselves(name):
    model = on_meta(VSSMConfig.from_dict(VARIANTS[name].options))
    found = recognise(model.state_dict())
    assert found.name == name
    assert found.config == model.config
    assert f"forward_type={model.config.forward_type!r}" in found.assumed


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in VARIANTS])
def test_upstreams_own_names_and_shapes_are_recognised(name):
    found = recognise(meta_state(PUBLISHED[name]["state_dict"]))
    assert found.name == name
    assert found.config == VSSMConfig.from_dict(VARIANTS[name].options)


def test_a_named_model_with_other_ends_is_still_that_model():
    options = {"num_classes": 7, "in_chans": 1, "posembed": True, "imgsize": 64}
    model = on_meta(VSSMConfig.from_dict({**VARIANTS["vmamba_nano"].options, **options}))
    found = recognise(model.state_dict())
    assert found.name == "vmamba_nano"
    assert found.config == model.config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dims": (6, 10, 18), "depths": (1, 1, 3)},
        {"depths": (2, 1), "num_classes": 0},
        {"in_chans": 5, "patch_size": 7, "patchembed_version": "v1"},
        {"patchembed_version": "v2", "patch_size": 2},
        {"patchembed_version": "v2", "patch_size": 8, "patch_norm": False},
        {"patch_norm": False},
        {"downsample_version": "v1"},
        {"downsample_version": "v3"},
        {"norm_layer": "bn"},
        {"posembed": True, "imgsize": 96},
        {"ssm_d_state": 5},
        {"ssm_d_state": "auto"},
        {"ssm_dt_rank": "auto"},
        {"ssm_dt_rank": 3},
        {"ssm_ratio": 1.0},
        {"ssm_ratio": 1.5},
        {"ssm_ratio": 0.75},
        {"ssm_ratio": 0.0},
        {"ssm_conv": 5, "ssm_conv_bias": False},
        {"ssm_conv": 0},
        {"forward_type": "v2"},
        {"forward_type": "v2_noz_onnone"},
        {"forward_type": "v2_noz_oncnorm"},
        {"forward_type": "v2_ondwconv3"},
        {"mlp_ratio": 0.0},
        {"mlp_ratio": 2.5},
        {"mlp_ratio": 3.0, "gmlp": True},
        {"mlp_ratio": 4.0, "norm_layer": "ln"},
        {"dims": (8,), "depths": (2,)},
    ],
    ids=str,
)
def test_everything_that_shapes_show_comes_back(changes):
    model = on_meta(VSSMConfig.from_dict({**BASE, **changes}))
    found = recognise(model.state_dict())
    assert found.name is None
    # One rank in all stages may be the automatic one; both build the same network.
    same = found.config.replace(ssm_dt_rank=model.config.ssm_dt_rank)
    if model.config.ssm_ratio == 0:
        same = same.replace(ssm_d_state=model.config.ssm_d_state, forward_type=model.config.forward_type)
    assert same == model.config
    shapes = {name: value.shape for name, value in on_meta(found.config).state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "changes", [{"forward_type": "v051d_noz_oact"}, {"ssm_act_layer": "gelu"}, {"post_norm": True}]
)
def test_what_shapes_do_not_show_is_listed_as_assumed(changes):
    found = recognise(on_meta(VSSMConfig.from_dict({**BASE, **changes})).state_dict())
    assert found.config == VSSMConfig.from_dict({**BASE, "ssm_dt_rank": found.config.ssm_dt_rank})
    fields = [text.split("=")[0] for text in found.assumed]
    assert fields == ["forward_type", "ssm_act_layer", "mlp_act_layer", "post_norm"]
    assert "forward_type='v2_noz'" in str(found)


def upstream_cases():
    """One case for each set of names and shapes that upstream's small networks have."""
    cases = {case["keyset"]: case for case in SMALL["cases"] if case["cls"] == "VSSM"}
    return list(cases.values())


@pytest.mark.parametrize("case", upstream_cases(), ids=lambda case: case["name"])
def test_upstreams_small_networks_fit_what_they_are_recognised_as(case):
    state = meta_state(SMALL["keysets"][case["keyset"]])
    config = infer_config(state)
    own = on_meta(config).state_dict()
    assert not find_misfits(translate_keys(state, own), own)
    gate = ForwardType.parse(case["kwargs"]["forward_type"]).gate
    assert config.ssm_ratio == 0 or ForwardType.parse(config.forward_type).gate == gate


def test_a_backbones_weights_are_recognised_too():
    model = vmamba.Backbone_VSSM(dims=8, depths=[1, 1], out_indices=(0, 1), ssm_d_state=2)
    config = infer_config({f"backbone.{key}": value for key, value in model.state_dict().items()})
    assert config.num_classes == 0
    assert config.dims == (8, 16)


def changed(**values):
    state = on_meta(VSSMConfig.from_dict({**BASE, "ssm_ratio": 2.0})).state_dict()
    for name, shape in values.items():
        name = name.replace("__", ".")
        if shape is None:
            del state[name]
        else:
            state[name] = torch.empty(shape, device="meta")
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "no layers.0.blocks.0; it has nothing"),
        ({"conv1.weight": torch.empty(4, 3, 7, 7)}, "it has conv1.weight"),
        (changed(layers__0__blocks__0__op__A_logs=None), "no layers.0.blocks.0.op.A_logs"),
        (changed(layers__0__blocks__0__op__dt_projs_weight=None), "no layers.0.blocks.0.op.dt_projs_weight"),
        (changed(layers__0__downsample__1__weight=(24, 8, 5, 5)), "side 5"),
        (changed(patch_embed__0__weight=(8, 48)), "patch_embed.0.weight has shape"),
        (changed(layers__0__blocks__0__op__out_proj__weight=(8,)), "want \\(out, in\\)"),
        (changed(layers__0__blocks__0__op__out_proj__weight=(8, 30)), "not one ratio"),
        (changed(layers__1__blocks__0__op__A_logs=(192, 3)), "the state size is \\[2, 3\\]"),
    ],
)
def test_what_is_no_vssm_is_refused_with_the_reason(state, words):
    with pytest.raises(CheckpointError, match=words):
        infer_config(state)


def test_load_needs_no_name(tmp_path, caplog):
    theirs = create_model("vmamba_nano", num_classes=5).eval()
    torch.save({"model": theirs.state_dict(), "epoch": 1}, tmp_path / "nano.pth")
    with caplog.at_level(logging.INFO, "vmamba"):
        ours = vmamba.load(tmp_path / "nano.pth")
    assert not ours.training
    assert ours.config == theirs.config
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "recognised vmamba_nano" in caplog.text
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))
    assert all(value.device.type == "cpu" for value in ours.state_dict().values())


def test_load_warns_where_it_had_to_assume(tmp_path, caplog):
    torch.save(VSSM(**BASE).half().state_dict(), tmp_path / "other.pth")
    model = vmamba.load(tmp_path / "other.pth")
    assert model.classifier.head.weight.dtype == torch.float32
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "assuming forward_type='v2_noz'" in record.getMessage()


def test_load_believes_what_a_file_says(tmp_path, caplog):
    config = VSSMConfig.from_dict({**BASE, "forward_type": "v052d_noz_oact", "ssm_act_layer": "gelu"})
    save_weights(tmp_path / "own.safetensors", VSSM(config).state_dict(), {"config": json.dumps(config.to_dict())})
    assert vmamba.load(tmp_path / "own.safetensors").config == config
    assert caplog.records == []
    save_weights(tmp_path / "broken.safetensors", VSSM(config).state_dict(), {"config": "{"})
    with pytest.raises(CheckpointError, match=r"broken.safetensors: the configuration"):
        vmamba.load(tmp_path / "broken.safetensors")


def test_load_lists_what_does_not_fit(tmp_path):
    state = VSSM(**BASE).state_dict()
    del state["classifier.norm.bias"]
    state["layers.1.blocks.1.op.Ds"] = torch.ones(3)
    state["extra"] = torch.ones(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        vmamba.load(tmp_path / "odd.pth")
    for words in (
        "odd.pth",
        "1 missing: classifier.norm.bias",
        "1 unexpected: extra",
        "op.Ds (given (3,), want (192,))",
    ):
        assert words in str(caught.value)
