"""Weight files: what loads, what is refused and why, and that nothing is half-written or half-loaded."""

import os
import pickle
import re
import sys
import types

import pytest
import torch

import vmamba
from vmamba import VSSM, Backbone_VSSM, CheckpointError, OutputError, load_weights, read_weights, save_weights
from vmamba.weights import translate_keys

OPTIONS = {"dims": 8, "depths": [1, 1], "num_classes": 4, "forward_type": "v05_noz", "ssm_d_state": 2}


def make(**options):
    return VSSM(**{**OPTIONS, **options})


def one_file_naming(state_dict):
    """The same weights as upstream's one-file model names and shapes them."""
    renamed = {}
    for key, value in state_dict.items():
        if key.endswith(("x_proj_weight", "dt_projs_weight")):
            value = value.flatten(0, 1)
            key = key.replace("_proj_weight", "_proj.weight").replace("_projs_weight", "_projs.weight")
        renamed[key] = value
    return renamed


def old_prefixes(state_dict):
    """The same weights under upstream's oldest names, as wrapped by DistributedDataParallel."""
    replacements = [
        (r"^patch_embed\.0\.", "patch_embed.proj."),
        (r"^patch_embed\.2\.", "patch_embed.norm."),
        (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."),
        (r"(blocks\.\d+)\.op\.", r"\1.self_attention."),
        (r"^classifier\.", ""),
    ]
    renamed = {}
    for key, value in state_dict.items():
        for new, old in replacements:
            key = re.sub(new, old, key)
        renamed["module." + key] = value
    return renamed


def conv_shapes(state_dict):
    """The same weights with pointwise products stored as 1×1 convolutions."""
    pointwise = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    return {k: v[:, :, None, None] if k.endswith(pointwise) else v for k, v in state_dict.items()}


@pytest.mark.parametrize("naming", [dict, one_file_naming, old_prefixes, conv_shapes])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_naming_loads_strictly(naming, suffix, tmp_path):
    theirs, ours = make(patchembed_version="v1"), make(patchembed_version="v1")
    renamed = naming(theirs.state_dict())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": renamed, "epoch": 3, "optimizer": {"state": {}}}, path)
    else:
        save_weights(path, renamed)
    load_weights(ours, path)
    for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_one_file_patch_merging_is_translated():
    model = make(downsample_version="v1")
    parts = {"downsample.norm.": "downsample.1.", "downsample.reduction.": "downsample.2."}
    renamed = {}
    for key, value in model.state_dict().items():
        for ours, theirs in parts.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    assert list(translate_keys(renamed, model.state_dict())) == list(model.state_dict())


def test_positional_embedding_is_resized_on_load():
    small, large = make(posembed=True, imgsize=32), make(posembed=True, imgsize=64)
    with torch.no_grad():
        small.pos_embed.normal_()
    load_weights(large, small.state_dict())
    want = torch.nn.functional.interpolate(small.pos_embed, size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(large.pos_embed, want)


def test_the_callers_entry_wins(tmp_path):
    a, b, into = make(), make(), make()
    torch.save({"model": a.state_dict(), "model_ema": b.state_dict()}, tmp_path / "both.pth")
    load_weights(into, tmp_path / "both.pth", key="model_ema")
    assert torch.equal(into.classifier.head.weight, b.classifier.head.weight)
    load_weights(into, tmp_path / "both.pth")
    assert torch.equal(into.classifier.head.weight, a.classifier.head.weight)
    with pytest.raises(CheckpointError, match=r"'ema'.*model, model_ema"):
        load_weights(into, tmp_path / "both.pth", key="ema")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("classifier.head.bias"), ["1 missing: classifier.head.bias"]),
        (lambda s: s.update(extra=torch.zeros(2)), ["1 unexpected: extra"]),
        (lambda s: s.update({"classifier.head.bias": torch.zeros(9)}), ["given (9,), want (4,)"]),
    ],
)
def test_misfits_are_listed_and_the_model_is_left_alone(change, words):
    model, state_dict = make(), make().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(state_dict)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state_dict)
    for word in words:
        assert word in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class CfgNode(dict):
    """Pickles as yacs' configuration class does: a dict's items, and attributes that hold plain values."""

    def __init__(self, values):
        super().__init__({name: CfgNode(v) if isinstance(v, dict) else v for name, v in values.items()})
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)


@pytest.fixture
def yacs(monkeypatch):
    """The class under its own address, at which pickle looks it up; called, it takes the module away."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    package.config, module.CfgNode = module, CfgNode
    for name, value in (("yacs", package), ("yacs.config", module)):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")

    def take_away():
        for name in ("yacs", "yacs.config"):
            monkeypatch.setitem(sys.modules, name, None)

    return take_away


def training_checkpoint(naming, **more):
    """What upstream's training program saves, after one step."""
    model = make(patchembed_version="v1")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.ones(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    scheduler.step()
    return {
        "model": naming(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "max_accuracy": 82.6,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "epoch": 264,
        "model_ema": naming(average),
        "max_accuracy_ema": 82.5,
        "config": CfgNode({"MODEL": {"VSSM": {"DEPTHS": [2, 2, 8, 2], "SSM_RATIO": 1.0}}, "AMP": True, "TAG": "x"}),
        **more,
    }


@pytest.mark.parametrize("naming", [dict, one_file_naming, old_prefixes, conv_shapes])
def test_upstreams_training_checkpoints_load(naming, tmp_path, yacs):
    content = training_checkpoint(naming)
    torch.save(content, tmp_path / "ckpt.pth")
    yacs()
    for key in (None, "model", "model_ema"):
        model = vmamba.load(tmp_path / "ckpt.pth", key=key)
        assert model.config.patchembed_version == "v1"
        entry = content[key or "model"]
        for value, given in zip(model.state_dict().values(), entry.values(), strict=True):
            assert torch.equal(value.flatten(), given.flatten())
    assert read_weights(tmp_path / "ckpt.pth").metadata == {
        "max_accuracy": "82.6",
        "epoch": "264",
        "max_accuracy_ema": "82.5",
    }


def test_a_training_checkpoint_with_another_class_is_refused(tmp_path, yacs):
    torch.save(training_checkpoint(dict, extra=Hostile()), tmp_path / "ckpt.pth")
    torch.save(training_checkpoint(dict, extra=types.SimpleNamespace(lr=1)), tmp_path / "plain.pth")
    yacs()
    with pytest.raises(CheckpointError, match=r"ckpt.pth carries code \(.*mkdir\) and is refused"):
        vmamba.load(tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError, match=r"plain.pth carries code \(types.SimpleNamespace\) and is refused"):
        vmamba.load(tmp_path / "plain.pth")


def test_a_weight_that_is_there_twice_is_refused():
    model = make()
    state_dict = model.state_dict()
    state_dict["head.bias"] = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"classifier.head.bias twice, as classifier.head.bias and as head.bias"):
        load_weights(model, state_dict)


class Hostile:
    """Runs code when unpickled."""

    def __reduce__(self):
        return os.mkdir, ("hostile-code-ran",)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": make().state_dict(), "config": Hostile()}, "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth carries code \(.*mkdir\).*refused"):
        read_weights("evil.pth")
    assert not (tmp_path / "hostile-code-ran").exists()


def test_damaged_files_are_named(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(make().state_dict(), whole)
    content = whole.read_bytes()
    save_weights(tmp_path / "whole.safetensors", make().state_dict())
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    damaged = {
        "cut.pth": content[: len(content) // 2],
        "text.pth": b"not a checkpoint",
        "empty.pth": b"",
        "cut.safetensors": tensors[: len(tensors) // 2],
        "empty.safetensors": b"",
        "list.pth": None,
    }
    for name, data in damaged.items():
        if data is None:
            torch.save([1, 2], tmp_path / name)
        else:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            load_weights(make(), tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="folder"):
        read_weights(tmp_path)


def test_plain_pickle_is_refused(tmp_path):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "plain.pkl")


def test_save_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)}, {"note": "first"})
    assert read_weights(path).metadata["note"] == "first"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_weights(path, {"a": torch.zeros(2)})
    assert torch.equal(read_weights(path).state_dict["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_shared_and_strided_tensors_are_saved(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    save_weights(tmp_path / "w.safetensors", {"a": base, "b": base.t(), "c": base[:, 1]})
    back = read_weights(tmp_path / "w.safetensors").state_dict
    assert torch.equal(back["b"], base.t())
    assert torch.equal(back["c"], base[:, 1])


def test_backbone_takes_a_classification_checkpoint(tmp_path):
    classifier = make()
    torch.save({"model": one_file_naming(classifier.state_dict())}, tmp_path / "c.pth")
    options = {key: value for key, value in OPTIONS.items() if key != "num_classes"}
    backbone = Backbone_VSSM(out_indices=(0, 1), pretrained=tmp_path / "c.pth", **options)
    assert torch.equal(backbone.layers[1].blocks[0].op.x_proj_weight, classifier.layers[1].blocks[0].op.x_proj_weight)
    wrong = {**options, "dims": 16}
    with pytest.raises(CheckpointError, match="another shape"):
        Backbone_VSSM(out_indices=(0, 1), pretrained=tmp_path / "c.pth", **wrong)
