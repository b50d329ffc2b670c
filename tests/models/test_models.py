"""The networks as a user meets them: names, shapes, heads, freezing, pickling, export."""

import copy
import io
import json
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import VSSM, Backbone_VSSM, ConfigError, InputError, create_model, list_models
from vmamba.models import VARIANTS, VSSMConfig

PUBLISHED = json.loads((Path(__file__).parents[1] / "parity/models.json").read_text())["models"]
TINY = {
    "dims": 8,
    "depths": [1, 1],
    "num_classes": 4,
    "forward_type": "v05_noz",
    "ssm_d_state": 2,
    "drop_path_rate": 0.0,
}


@pytest.mark.parametrize("name", list_models(task="classification"))
def test_named_models_are_what_upstream_publishes(name):
    with torch.device("meta"):
        model = create_model(name)
    parameters = sum(p.numel() for p in model.parameters())
    if name == "vmamba_nano":
        assert parameters <= 1.5e6
        return
    facts = PUBLISHED[name]
    assert parameters == facts["parameters"]
    assert len(model.state_dict()) == len(facts["state_dict"])
    rates = [block.drop_path.p for stage in model.stages() for block in stage.blocks]
    assert rates == pytest.approx(facts["drop_path"], abs=1e-6)
    published = VARIANTS[name].published
    if facts["published"] is None:
        assert published is None
        return
    assert (published.top1, published.params_m, published.flops_g) == (
        facts["published"]["top1"],
        facts["published"]["params_M"],
        facts["published"]["flops_G"],
    )


def test_list_models_takes_patterns():
    assert list_models("vmamba*s1l*") == ["vmamba_tiny_s1l8", "vmamba_small_s1l20", "vmamba_base_s1l20"]
    assert list_models("nothing*") == []


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"vmamba_tinny_s1l8.*did you mean 'vmamba_tiny_s1l8'"):
        create_model("vmamba_tinny_s1l8")


def test_features_head_and_reset():
    model = VSSM(**TINY).eval()
    x = torch.randn(2, 3, 32, 24)
    features = model.forward_features(x)
    assert features.shape == (2, 4, 3, 16)
    assert model.forward_head(features, pre_logits=True).shape == (2, 16)
    assert torch.equal(model.forward_head(features), model(x))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert (model.num_classes, model.config.num_classes) == (7, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    with pytest.raises(ConfigError, match="-1"):
        model.reset_classifier(-1)


def test_reset_classifier_keeps_dtype_and_device():
    model = VSSM(**TINY).to(torch.bfloat16)
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.bfloat16


def test_no_weight_decay_names_what_decay_would_harm():
    names = VSSM(**TINY, posembed=True, imgsize=32).no_weight_decay()
    assert "pos_embed" in names
    for tail in ("A_logs", "Ds", "dt_projs_bias"):
        assert f"layers.1.blocks.0.op.{tail}" in names
    assert not any(name.endswith("x_proj_weight") for name in names)


@pytest.mark.parametrize("size", [(32, 32), (17, 33), (4, 4), (5, 64), (6, 4)])
@pytest.mark.parametrize("downsample", ["v1", "v3"])
def test_any_image_size(size, downsample):
    model = VSSM(**TINY, downsample_version=downsample).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 4)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 3, 32), ["3×32", "smaller than a patch", "4×4"]),
        ((1, 1, 32, 32), ["(b, 3, H, W)", "(1, 1, 32, 32)"]),
        ((3, 32, 32), ["(3, 32, 32)"]),
    ],
)
def test_images_that_do_not_fit(shape, words):
    with pytest.raises(InputError) as caught:
        VSSM(**TINY, downsample_version="v3")(torch.zeros(shape))
    for word in words:
        assert word in str(caught.value)


def test_integer_images_and_too_many_stages():
    with pytest.raises(InputError, match=r"uint8.*convert"):
        VSSM(**TINY)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="at least 8×8"):
        VSSM(**TINY, downsample_version="v2")(torch.zeros(1, 3, 7, 32))


def test_positional_embedding_follows_the_image():
    model = VSSM(**TINY, posembed=True, imgsize=32).eval()
    with torch.no_grad():
        model.pos_embed.normal_()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)
    assert model(torch.randn(1, 3, 48, 20)).shape == (1, 4)


def test_backbone_returns_its_stages():
    backbone = Backbone_VSSM(dims=8, depths=[1, 1, 1], out_indices=(0, 2), forward_type="v05_noz")
    shapes = [tuple(feature.shape) for feature in backbone(torch.randn(2, 3, 32, 48))]
    assert shapes == [(2, 8, 8, 12), (2, 32, 2, 3)]
    with pytest.raises(ConfigError, match=r"out_indices \(0, 3\)"):
        Backbone_VSSM(dims=8, depths=[1, 1, 1], out_indices=(0, 3))


def test_a_backbones_norm_is_the_configurations_unless_it_is_given():
    config = VSSMConfig(dims=8, depths=[1, 1], norm_layer="bn")
    for given, want in [({}, "bn"), ({"norm_layer": "ln"}, "ln"), ({"norm_layer": "bn"}, "bn")]:
        backbone = Backbone_VSSM(config=config, out_indices=(0,), **given)
        assert backbone.config == config.replace(norm_layer=want)
        assert isinstance(backbone.outnorm0, torch.nn.BatchNorm2d) == (want == "bn"), type(backbone.outnorm0)
    assert Backbone_VSSM((0,), None, "bn", dims=8, depths=[1, 1]).config.norm_layer == "bn"
    assert Backbone_VSSM(dims=8, depths=[1, 1], out_indices=(0,)).config.norm_layer == "ln"  # upstream's default


def test_initial_values_keep_the_step_projection():
    """One of upstream's files redraws it with the linear layers; here Mamba's initial steps stay."""
    torch.manual_seed(0)
    op = create_model("vmamba_nano").layers[3].blocks[0].op.requires_grad_(False)
    steps = torch.nn.functional.softplus(op.dt_projs_bias)
    assert 1e-4 <= steps.min() < 3e-3
    assert 0.05 < steps.max() <= 0.1001
    bound = op.dt_rank**-0.5
    assert op.dt_projs_weight.abs().max() <= bound
    assert op.dt_projs_weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.allclose(op.A_logs, torch.zeros_like(op.A_logs))  # log(1) for a single state
    assert op.in_proj.weight.std() == pytest.approx(0.02, rel=0.1)


def test_copy_and_pickle():
    model = VSSM(**TINY).eval()
    x = torch.randn(1, 3, 32, 32)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), model(x))


def test_checkpointing_changes_memory_not_values():
    torch.manual_seed(0)
    plain = VSSM(**TINY)
    recomputing = copy.deepcopy(plain)
    recomputing.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    for model in (plain, recomputing):
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert recomputing.config.use_checkpoint


def test_post_norm_norms_what_the_branch_adds():
    block = vmamba.VSSBlock(hidden_dim=8, post_norm=True, ssm_d_state=1, forward_type="v05_noz")
    added = block(x := torch.randn(1, 4, 4, 8)) - x
    assert added.mean(-1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whole_module_casts(dtype):
    torch.manual_seed(0)
    model = VSSM(**TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    want = model(x)
    got = model.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() <= 0.03 * want.abs().max()


@pytest.mark.long
def test_exports_with_dynamic_batch_height_and_width():
    model = VSSM(**TINY, downsample_version="v3", selective_scan_backend="torch").eval()
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (torch.randn(2, 3, 32, 48),), dynamic_shapes=dynamic)
    assert not any("vmamba" in str(node.target) for node in program.graph.nodes)
    module = program.module()  # takes seconds
    for size in [(2, 3, 32, 48), (1, 3, 40, 64), (5, 3, 224, 20)]:
        x = torch.randn(size)
        torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
