"""What timm asks of a model, for every named one: registry, configuration, heads, features, layer groups, weights.

Shapes are checked on the meta device, values on small images. TorchScript is not supported and not tested.
"""

import copy
import functools

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import GraphExtractNet, get_graph_node_names, group_modules, group_parameters
from timm.optim import param_groups_layer_decay

import vmamba
import vmamba.timm
from vmamba import CheckpointError, ConfigError
from vmamba.data import imagenet_class_names
from vmamba.models import VARIANTS
from vmamba.weights import OFFICIAL

NAMES = vmamba.list_models(task="classification")
SMALL = ["vmamba_nano", "vanilla_vmamba_tiny", "vmamba_tiny_s2l5", "vmamba_tiny_s1l8"]
EACH = [name if name in SMALL else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
# Every family's own layers at a size for tests.
TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
FAMILIES = ["vanilla_vmamba_tiny", "vmamba_tiny_s2l5", "vmamba_tiny_s1l8"]


def tiny(name: str = "vmamba_nano", **options: object) -> torch.nn.Module:
    return timm.create_model(name, **{**TINY, **options})


def on_meta(name: str, **options: object) -> torch.nn.Module:
    return timm.create_model(name, device="meta", **options).eval()


@functools.cache
def image(size: int = 64, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size + 32, generator=torch.Generator().manual_seed(0))


def test_registered():
    assert set(timm.list_models("*vmamba*")) == set(NAMES)
    for name in NAMES:
        assert timm.is_model(name)
        assert getattr(vmamba.timm, name) is timm.model_entrypoint(name)
        assert name in vmamba.timm.__all__


@pytest.mark.parametrize("name", EACH)
def test_forward_and_backward(name):
    model = timm.create_model(name, num_classes=42).train()
    x = image(32).to(memory_format=torch.channels_last)
    logits = model(x)
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    logits.mean().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter


def test_the_same_network_as_create_model():
    torch.manual_seed(0)
    ours = vmamba.create_model("vmamba_nano").eval()
    torch.manual_seed(0)
    timms = timm.create_model("vmamba_nano").eval()
    assert list(timms.state_dict()) == list(ours.state_dict())
    assert timms.config == ours.config
    assert torch.equal(timms(image()), ours(image()))
    assert timms(image().contiguous(memory_format=torch.channels_last)).allclose(ours(image()), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg(name):
    model = on_meta(name)
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    state_dict = model.state_dict()
    assert state_dict[f"{cfg['classifier']}.weight"].shape == (cfg["num_classes"], model.num_features)
    assert state_dict[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0] == model.in_chans
    stride = model.feature_info[-1]["reduction"]
    assert tuple(side // stride for side in cfg["input_size"][1:]) == cfg["pool_size"]
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["mean"] == (0.485, 0.456, 0.406)
    assert data["std"] == (0.229, 0.224, 0.225)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 0.875)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_pool_size_at_the_default_size(name):
    model = on_meta(name)
    x = torch.empty(1, *model.default_cfg["input_size"], device="meta")
    with torch.no_grad():
        features = model.forward_features(x)
    assert features.shape == (1, *model.default_cfg["pool_size"], model.num_features)


@pytest.mark.parametrize("name", EACH)
def test_heads(name):
    model = on_meta(name)
    assert model.output_fmt == "NHWC"
    with torch.no_grad():
        features = model.forward_features(torch.empty(2, 3, 64, 96, device="meta"))
    assert features.shape == (2, 2, 3, model.num_features)
    assert model.num_features == model.head_hidden_size == VARIANTS[name].options["dims"][-1]
    assert model.forward_head(features).shape == (2, 1000)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), torch.nn.Linear)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model.forward_head(features).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    model.reset_classifier(7)
    assert model.forward_head(features).shape == (2, 2, 3, 7)
    model.reset_classifier(5, "avg")
    assert model.forward_head(features).shape == (2, 5)


def test_head_options_at_creation():
    assert tiny(num_classes=0)(image()).shape == (2, 32)
    assert tiny(num_classes=0, global_pool="")(image()).shape == (2, 2, 3, 32)
    assert tiny(num_classes=5, in_chans=4)(image(channels=4)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"global_pool 'max' is not supported; legal: 'avg'"):
        tiny(global_pool="max")
    with pytest.raises(ConfigError, match="global_pool 'max'"):
        tiny().reset_classifier(3, "max")
    with pytest.raises(ConfigError, match="output_stride 16"):
        tiny(features_only=True, output_stride=16)
    with pytest.raises(ConfigError, match=r"'drop_pth_rate' is not an option.*'drop_path_rate'"):
        tiny(drop_pth_rate=0.1)


def test_drop_rates():
    model = tiny(drop_rate=0.5, drop_path_rate=0.25, num_classes=0).eval()
    pooled = model(image())
    assert pooled.count_nonzero() == pooled.numel()
    assert model.layers[-1].blocks[-1].drop_path.p == 0.25
    dropped = model.train().forward_head(torch.ones(64, 1, 1, 32))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (dropped == 0).float().mean() < 0.6


def test_device_and_dtype():
    model = tiny(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in tiny(device="meta").parameters()} == {"meta"}


@pytest.mark.parametrize("name", EACH)
def test_features_only(name):
    model = on_meta(name, features_only=True)
    with torch.no_grad():
        maps = model(torch.empty(1, 3, 64, 96, device="meta"))
    assert model.feature_info.channels() == list(VARIANTS[name].options["dims"])
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for feature, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (1, channels, 64 // reduction, 96 // reduction)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0,), (1, 3), (-1,), (-3, -2), (2, 0), 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_out_indices(name, out_indices):
    """A subset of stages gives the whole network's maps, keeps no parameter that they do not need, and can train."""
    torch.manual_seed(0)
    whole = tiny(name, drop_path_rate=0.0)
    want = whole.forward_intermediates(image(), intermediates_only=True)
    model = tiny(name, features_only=True, out_indices=out_indices, drop_path_rate=0.0)
    kept = model.model.state_dict()
    model.model.load_state_dict({key: value for key, value in whole.state_dict().items() if key in kept})
    maps = model(image())
    wanted = [want[i] for i in (range(4)[-out_indices:] if isinstance(out_indices, int) else out_indices)]
    assert len(maps) == len(wanted)
    for got, one in zip(maps, wanted, strict=True):
        assert torch.equal(got, one)
    assert model.feature_info.channels() == [feature.shape[1] for feature in maps]
    assert model.feature_info.reduction() == [64 // feature.shape[2] for feature in maps]
    sum(feature.square().mean() for feature in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("feature_cls", ["getter", "hook", "fx"])
@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")
def test_feature_classes(feature_cls):
    model = tiny(features_only=True, out_indices=(1, 2), feature_cls=feature_cls).eval()
    maps = model(image())
    channels = 1 if feature_cls == "getter" else 3
    assert [feature.shape[channels] for feature in maps] == model.feature_info.channels() == [16, 24]


def test_forward_intermediates():
    model = tiny().eval()
    x = image()
    features = model.forward_features(x)
    got, maps = model.forward_intermediates(x)
    assert torch.equal(got, features)
    assert [tuple(one.shape) for one in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    last_places = model.forward_intermediates(x, indices=[-1, 0], output_fmt="NHWC", intermediates_only=True)
    for nhwc, nchw in zip(last_places, (maps[3], maps[0]), strict=True):
        assert torch.equal(nhwc.permute(0, 3, 1, 2), nchw)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[3], features.permute(0, 3, 1, 2))
    assert torch.equal(normed[2], maps[2])
    early, two = model.forward_intermediates(x, indices=[1, 0], stop_early=True, norm=True)
    assert torch.equal(early.permute(0, 3, 1, 2), two[0])
    assert all(torch.equal(a, b) for a, b in zip(two, (maps[1], maps[0]), strict=True))


@pytest.mark.parametrize("indices", [[], [4], [-5, 0], 0, 5])
def test_stages_that_there_are_not(indices):
    with pytest.raises(ConfigError, match=r"must name stages out of -4\.\.3"):
        tiny().forward_intermediates(image(), indices=indices)


def test_unknown_layout():
    with pytest.raises(ConfigError, match="output_fmt 'NLC' is unknown; legal: NCHW, NHWC"):
        tiny().forward_intermediates(image(), output_fmt="NLC")


def test_pruning():
    model = tiny(num_classes=3).eval()
    norm, head = model.classifier.norm, model.classifier.head
    assert model.prune_intermediate_layers([3, 1], prune_head=False) == [3, 1]
    assert (model.classifier.norm, model.classifier.head) == (norm, head)
    assert model.prune_intermediate_layers(4) == [0, 1, 2, 3]
    assert (model.classifier.norm, model.num_classes) == (norm, 0)
    before = model.forward_intermediates(image(), indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([-3]) == [1]
    assert (model.config.depths, model.config.dims, model.num_features) == ((1, 1), (8, 16), 16)
    assert not any(key.startswith(("classifier", "layers.2", "layers.1.downsample")) for key in model.state_dict())
    assert torch.equal(model.forward_features(image()).permute(0, 3, 1, 2), before)
    model.reset_classifier(4)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")  # stochastic depth, in training only
def test_symbolic_tracing(name):
    model = tiny(name).eval()
    nodes = get_graph_node_names(model)[1]
    traced = GraphExtractNet(model, [nodes[-1]])
    assert torch.equal(traced(image()), model(image()))
    with torch.no_grad():
        assert torch.equal(traced(image()), model(image()))
    traced(image()).mean().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_group_matcher(name):
    """Groups cover every parameter and rise block by block: stem, blocks, head; a step down belongs to its stage."""
    model = on_meta(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {key for key, _ in model.named_parameters()}
    blocks = sum(model.config.depths)
    assert set(groups.values()) == set(range(blocks + 2))
    assert all(group == 0 for key, group in groups.items() if key.startswith("patch_embed"))
    block = 0
    for stage, depth in enumerate(model.config.depths):
        for i in range(depth):
            block += 1
            assert {g for key, g in groups.items() if key.startswith(f"layers.{stage}.blocks.{i}.")} == {block}
        assert {g for key, g in groups.items() if key.startswith(f"layers.{stage}.downsample")} <= {block}
    assert groups["classifier.norm.weight"] == blocks
    assert groups["classifier.head.weight"] == groups["classifier.head.bias"] == blocks + 1
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {key: coarse[key] for key in coarse if key.startswith("layers")} == {
        key: 1 + int(key.split(".")[1]) for key in coarse if key.startswith("layers")
    }
    assert (coarse["classifier.norm.weight"], coarse["classifier.head.weight"]) == (4, 5)
    assert sum(map(len, group_modules(model, model.group_matcher()).values())) > 0


def test_layer_decay():
    model = tiny(posembed=True)
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert set(scale) == {id(p) for p in model.parameters()}
    layers = sum(model.config.depths) + 1
    assert scale[id(model.classifier.head.weight)] == 1.0
    assert scale[id(model.pos_embed)] == scale[id(model.patch_embed[0].weight)] == 0.5**layers
    assert scale[id(model.layers[2].blocks[1].op.in_proj.weight)] == 0.5 ** (layers - 4)
    assert decay[id(model.layers[0].blocks[0].op.in_proj.weight)] == 0.05
    assert decay[id(model.layers[0].blocks[0].op.A_logs)] == 0.0
    timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.5).step()


def test_grad_checkpointing():
    torch.manual_seed(0)
    plain = tiny(drop_path_rate=0.0)
    recomputing = copy.deepcopy(plain)
    recomputing.set_grad_checkpointing(True)
    runs = []
    recomputing.layers[0].blocks[0].norm.register_forward_hook(lambda *_: runs.append(1))
    for model in (plain, recomputing):
        model(image()).square().sum().backward()
    assert len(runs) == 2
    for a, b in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def upstream_file(path, model):
    """A training checkpoint as upstream writes it, in its one-file naming."""
    names = {"classifier.norm.": "norm.", "classifier.head.": "head."}
    renamed = {
        next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key): value
        for key, value in model.state_dict().items()
    }
    torch.save({"model": renamed, "epoch": 3}, path)
    return renamed


def test_pretrained_from_a_file(tmp_path):
    donor = vmamba.create_model("vmamba_nano").eval()
    upstream_file(tmp_path / "weights.pth", donor)
    build = functools.partial(
        timm.create_model,
        "vmamba_nano",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
    )
    x = image()
    assert torch.equal(build().eval()(x), donor(x))
    pooled = donor.forward_head(donor.forward_features(x), pre_logits=True)
    assert torch.equal(build(num_classes=0).eval()(x), pooled)
    other = build(num_classes=5).eval()
    assert other(x).shape == (2, 5)
    assert torch.equal(other.forward_head(other.forward_features(x), pre_logits=True), pooled)
    maps = build(features_only=True, out_indices=(1, 3)).eval()(x)
    for got, want in zip(maps, donor.forward_intermediates(x, [1, 3], intermediates_only=True), strict=True):
        assert torch.equal(got, want)
    grey = build(in_chans=1).eval()(x[:, :1])
    assert grey.allclose(donor(x[:, :1].expand(-1, 3, -1, -1)), atol=1e-4)
    with pytest.raises(CheckpointError, match=r"weights\.pth does not fit.*missing: layers\.0\.blocks\.1"):
        build(depths=(2, 1, 2, 1))


def test_pretrained_from_a_state_dict(tmp_path):
    donor = vmamba.create_model("vmamba_nano").eval()
    renamed = upstream_file(tmp_path / "unused.pth", donor)

    def build(weights, **options):
        overlay = {"state_dict": dict(weights)}
        return timm.create_model("vmamba_nano", pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()

    assert torch.equal(build(renamed)(image()), donor(image()))
    assert build(renamed, num_classes=5, in_chans=4)(image(channels=4)).shape == (2, 5)
    del renamed["patch_embed.5.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: patch_embed\.5\.bias"):
        build(renamed, num_classes=5)


def test_checkpoint_path(tmp_path):
    donor = vmamba.create_model("vmamba_nano").eval()
    vmamba.save_weights(tmp_path / "best.safetensors", donor.state_dict())
    model = timm.create_model("vmamba_nano", checkpoint_path=str(tmp_path / "best.safetensors")).eval()
    assert torch.equal(model(image()), donor(image()))


def test_saved_and_loaded_again(tmp_path):
    model = tiny(num_classes=5).eval()
    model.save_pretrained(tmp_path)
    for kind in (vmamba.VSSM, vmamba.timm.TimmVSSM):
        twin = kind.from_pretrained(tmp_path)
        assert type(twin) is kind
        assert torch.equal(twin(image()), model(image()))
    body = tiny(features_only=True).eval()
    other = tiny(features_only=True).eval()
    other.load_state_dict(body.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other(image()), body(image()), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_released_weights(name):
    cfg = timm.get_pretrained_cfg(name)
    if name not in OFFICIAL:
        assert not timm.is_model_pretrained(name)
        with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
            timm.create_model(name, pretrained=True)
        return
    assert timm.list_pretrained(name) == [f"{name}.in1k"]
    assert (cfg.url, cfg.tag, cfg.num_classes) == (OFFICIAL[name].url, "in1k", 1000)


@pytest.mark.parametrize("with_cache_dir", [False, True])
def test_released_weights_come_from_torch_hubs_cache(with_cache_dir, tmp_path, monkeypatch):
    """The released file's place holds a file of the right network here: no network is asked for it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path if with_cache_dir else tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    donor = vmamba.create_model("vmamba_tiny_s2l5").eval()
    upstream_file(place / OFFICIAL["vmamba_tiny_s2l5"].file_name, donor)
    options = {"cache_dir": tmp_path} if with_cache_dir else {}
    model = timm.create_model("vmamba_tiny_s2l5.in1k", pretrained=True, **options).eval()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), donor.parameters(), strict=True))


def test_class_names():
    names = imagenet_class_names()
    assert len(names) == 1000
    assert (names[0], names[999]) == ("tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")
    assert [i for i, name in enumerate(names) if name == "crane"] == [134, 517]
