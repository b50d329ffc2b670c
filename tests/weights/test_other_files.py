"""Weights as they come: behind other programs' prefixes, out of larger networks, of other kinds, with another head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vmamba
from vmamba.weights.names import prefix_of

SMALL = {"dims": (8, 16), "depths": (1, 1), "num_classes": 3}
HEADS = {
    "decode_head.conv_seg.weight": torch.zeros(150, 8, 1, 1),
    "auxiliary_head.conv_seg.bias": torch.zeros(150),
    "neck.lateral_convs.0.conv.weight": torch.zeros(256, 8, 1, 1),
    "roi_head.bbox_head.fc_cls.bias": torch.zeros(81),
}


def small(seed: int = 0, **options: object) -> vmamba.VSSM:
    torch.manual_seed(seed)
    return vmamba.create_model("vmamba_nano", **{**SMALL, **options}).eval()


def backbone(seed: int = 0, **options: object) -> vmamba.Backbone_VSSM:
    torch.manual_seed(seed)
    config = vmamba.model_config("vmamba_nano", **SMALL)
    return vmamba.Backbone_VSSM(**{"out_indices": (0, 1), "config": config, **options}).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ---- prefixes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "module._orig_mod.", "_orig_mod.", "model.", "encoder.", "net.student.vit."]
)
def test_any_prefix_that_all_names_share(prefix: str, image: Tensor, tmp_path: Path) -> None:
    donor = small()
    state = {prefix + name: value for name, value in donor.state_dict().items()}
    model = small(1)
    vmamba.load_weights(model, {"state_dict": state})
    assert torch.equal(model(image), donor(image))
    vmamba.save_weights(tmp_path / "w.pth", state)
    assert torch.equal(vmamba.load(tmp_path / "w.pth")(image), donor(image))


def test_names_of_wrappers_inside(image: Tensor) -> None:
    donor = small()
    wrapped = {name.replace(".blocks.0.", ".blocks.0._orig_mod."): value for name, value in donor.state_dict().items()}
    wrapped = {name.replace("classifier.", "classifier._fsdp_wrapped_module."): v for name, v in wrapped.items()}
    model = small(1)
    vmamba.load_weights(model, wrapped)
    assert torch.equal(model(image), donor(image))


def test_a_decoder_beside_it_has_no_patches_and_two_networks_are_told_apart() -> None:
    names = list(small().state_dict())
    encoder, decoder = (
        ["encoder." + name for name in names],
        ["decoder." + n for n in names if "patch_embed" not in n],
    )
    assert prefix_of(encoder + decoder) == "encoder."
    values = dict.fromkeys([*encoder, *("ema." + name for name in names)], torch.zeros(1))
    with pytest.raises(vmamba.CheckpointError, match=r"2 networks, under the prefixes 'encoder\.', 'ema\.'"):
        vmamba.load_weights(small(), values)


# ---- backbones -----------------------------------------------------------------------------------------------------


def test_the_backbone_of_a_segmenter(image: Tensor, tmp_path: Path) -> None:
    source = backbone()
    for i in range(2):
        nn.init.normal_(getattr(source, f"outnorm{i}").weight)
    inside = {"backbone." + name: value for name, value in source.state_dict().items()}
    file = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"iter": 160000}, "state_dict": {**inside, **HEADS}}, file)
    for one, other in zip(source(image), backbone(1, pretrained=file)(image), strict=True):
        assert torch.equal(one, other)
    first = backbone(1, pretrained=file, out_indices=(0,))
    assert torch.equal(source(image)[0], first(image)[0])
    with pytest.raises(vmamba.CheckpointError, match=r"Backbone_VSSM\(pretrained=…\)"):
        vmamba.load_weights(small(), file)


def test_what_a_backbone_needs_must_be_there(tmp_path: Path) -> None:
    state = {name: value for name, value in small().state_dict().items() if name != "layers.1.blocks.0.op.A_logs"}
    vmamba.save_weights(tmp_path / "w.pth", state)
    with pytest.raises(vmamba.CheckpointError, match=r"1 missing: layers\.1\.blocks\.0\.op\.A_logs"):
        backbone(pretrained=tmp_path / "w.pth")
    assert len(backbone(pretrained=tmp_path / "w.pth", out_indices=(0,)).layers) == 1
    vmamba.save_weights(tmp_path / "w.pth", {**small().state_dict(), "layers.0.blocks.7.norm.weight": torch.ones(8)})
    with pytest.raises(vmamba.CheckpointError, match=r"1 unexpected: layers\.0\.blocks\.7"):
        backbone(pretrained=tmp_path / "w.pth")


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_backbone_takes_other_channels_as_a_classifier_does(channels: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    vmamba.save_weights(file, small().state_dict())
    config = vmamba.model_config("vmamba_nano", **SMALL, in_chans=channels)
    taken = vmamba.Backbone_VSSM(config=config, out_indices=(0, 1), pretrained=file)
    like = vmamba.create_model("vmamba_nano", **SMALL, in_chans=channels, pretrained=file)
    assert torch.equal(taken.patch_embed[0].weight, like.patch_embed[0].weight)


@pytest.mark.parametrize("chosen", [(0,), (1, 0), ()])
def test_a_backbone_has_no_stage_for_nothing(chosen: tuple[int, ...], image: Tensor) -> None:
    made = backbone(out_indices=chosen).train()
    with vmamba.recorded_runs() as runs:
        maps = made(image)
    assert len(runs) == (max(chosen) + 1 if chosen else 2)
    sum(one.mean() for one in (maps if chosen else [maps])).backward()
    assert all(p.grad is not None for p in made.parameters())


# ---- values that cannot be weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loads", ["load_weights", "create_model", "Backbone_VSSM", "load"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.int(), "given torch.int32, want torch.float32"),
        (lambda t: t.to(torch.complex64), "given torch.complex64, want torch.float32"),
        (lambda t: t.to_sparse(), "sparse"),
    ],
)
def test_other_kinds_of_numbers_are_refused(loads: str, change: object, words: str, tmp_path: Path) -> None:
    state = small().state_dict()
    state["layers.0.blocks.0.op.out_proj.weight"] = change(state["layers.0.blocks.0.op.out_proj.weight"])
    file = tmp_path / "w.pth"
    torch.save({"model": state}, file)
    model = small(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = {
        "load_weights": lambda: vmamba.load_weights(model, file),
        "create_model": lambda: vmamba.create_model("vmamba_nano", **SMALL, pretrained=file),
        "Backbone_VSSM": lambda: backbone(pretrained=file),
        "load": lambda: vmamba.load(file),
    }
    with pytest.raises(vmamba.CheckpointError, match=rf"1 of another kind: layers\.0.*{words}"):
        calls[loads]()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        state = small().state_dict()
    with pytest.raises(vmamba.CheckpointError, match="on the meta device, without values"):
        vmamba.load_weights(small(), state)


def test_narrow_and_wide_floats_are_rounded(image: Tensor) -> None:
    model = small(1)
    vmamba.load_weights(model, {name: value.double() for name, value in small().state_dict().items()})
    assert torch.equal(model(image), small()(image))


def test_an_empty_name_and_an_empty_file_say_so(tmp_path: Path) -> None:
    for call in (lambda: vmamba.create_model("vmamba_nano", pretrained=""), lambda: backbone(pretrained="")):
        with pytest.raises(vmamba.CheckpointError, match="the name of the weight file is empty"):
            call()
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(vmamba.CheckpointError, match="is empty: no weights are in it"):
        backbone(pretrained=tmp_path / "w.pth")


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_another_number_of_classes_points_to_what_adapts() -> None:
    with pytest.raises(
        vmamba.CheckpointError, match=r"5 classes there and 3 here: create_model\(…, pretrained=…, num_classes=3\)"
    ):
        vmamba.load_weights(small(), small(num_classes=5).state_dict())


@pytest.mark.parametrize("classes", [7, 0])
def test_a_head_replaced_by_hand_comes_back(classes: int, image: Tensor, tmp_path: Path) -> None:
    model = small()
    model.classifier.head = nn.Linear(16, classes) if classes else nn.Identity()
    model.save_pretrained(tmp_path)
    back = vmamba.VSSM.from_pretrained(tmp_path)
    assert torch.equal(back(image), model(image))
    assert torch.equal(vmamba.load(tmp_path / "model.safetensors")(image), model(image))


def test_a_network_that_no_configuration_describes_is_not_saved(tmp_path: Path) -> None:
    model = small()
    model.classifier.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 7))
    with pytest.raises(vmamba.CheckpointError, match="no longer what its configuration says"):
        model.save_pretrained(tmp_path / "folder")
    assert not list((tmp_path / "folder").glob("*"))


def test_a_classifier_without_its_parts_is_refused_where_it_is_put_in() -> None:
    model = small()
    for wrong in (nn.Linear(16, 7), nn.Identity()):
        with pytest.raises(vmamba.ConfigError, match=r"reset_classifier\(classes\)"):
            model.classifier = wrong
    model.classifier = torch.compile(model.classifier, backend="eager")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


# ---- whose they are ------------------------------------------------------------------------------------------------


def test_a_misfit_says_whose_the_weights_are(tmp_path: Path) -> None:
    """The commonest of all reports: a backbone with default options and the file of a named model."""
    with torch.device("meta"):
        state = vmamba.create_model("vmamba_tiny_s1l8").state_dict()
        backbone = vmamba.Backbone_VSSM()
        with pytest.raises(vmamba.CheckpointError, match=r"they are vmamba_tiny_s1l8's.*model_config\('vmamba_tiny_s1"):
            vmamba.load_weights(backbone, state)
    with pytest.raises(vmamba.CheckpointError, match=r"a VSSM of depths \(1, 1\) and dims \(8, 16\)"):
        vmamba.load_weights(small(dims=(8, 24)), small().state_dict())


def test_an_averaged_model_loads_as_it_is(image: Tensor) -> None:
    donor = small()
    averaged = torch.optim.swa_utils.AveragedModel(donor)
    model = small(1)
    vmamba.load_weights(model, averaged.state_dict())
    assert torch.equal(model(image), donor(image))
