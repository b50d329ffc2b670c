"""Networks over volumes: shapes, options, mistakes, and that each axis's scans are what carries along it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from vmamba import VSSM3D, ConfigError, InputError, UNet3D, VolumeConfig
from vmamba.data.datasets.lines import FAR, SIDE, THICK, asked, make_lines
from vmamba.functional.depthwise3d import depthwise3x3x3
from vmamba.integrations.nnunet.network import unet_of_plans

SMALL = {"dims": (8, 12, 16), "depths": (0, 1, 1), "strides": (1, 2, (1, 2, 2)), "num_classes": 3}


@pytest.fixture(autouse=True)
def _fixed_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("share", [False, True])
def test_a_classifier(share: bool) -> None:
    model = VSSM3D(**SMALL, share_directions=share, in_chans=2)
    x = torch.randn(2, 2, 4, 8, 12, requires_grad=True)
    y = model(x)
    assert y.shape == (2, 3)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert VSSM3D(**{**SMALL, "num_classes": 0})(torch.randn(1, 1, 4, 4, 4)).shape == (1, 16)
    assert {name.rsplit(".", 1)[-1] for name in model.no_weight_decay()} == {"A_logs", "Ds", "dt_projs_bias"}


def test_a_unet() -> None:
    model = UNet3D(**SMALL)
    x = torch.randn(1, 1, 4, 8, 12)
    assert model(x).shape == (1, 3, 4, 8, 12)
    deep = UNet3D(**SMALL, deep_supervision=True)
    deep.load_state_dict(model.state_dict())
    found = deep(x)
    assert [tuple(one.shape) for one in found] == [(1, 3, 4, 8, 12), (1, 3, 2, 4, 6)]
    torch.testing.assert_close(found[0], model(x))
    sum(one.sum() for one in found).backward()
    assert all(p.grad is not None for p in deep.parameters())
    stem = UNet3D(dims=(8, 12), depths=(1, 1), strides=(2, 2))
    assert stem(torch.randn(1, 1, 8, 8, 4)).shape == (1, 2, 8, 8, 4)


def test_blocks_are_recomputed_alike() -> None:
    model = UNet3D(**SMALL).train()
    again = UNet3D(**SMALL, use_checkpoint=True).train()
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 4, 8, 8)
    for one in (model, again):
        one(x).square().sum().backward()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_configuration_goes_through_json() -> None:
    config = VolumeConfig(**SMALL, scan_axes=[2, 0])
    assert config.strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2))
    assert config.stride == (2, 4, 4)
    assert VolumeConfig.from_dict(config.to_dict()) == config
    assert VSSM3D(config, ssm_conv=0).config.ssm_conv == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": (1,)}, "did you mean 'depths'"),
        ({"depths": (1, 1)}, "one entry a stage each"),
        ({"depths": 3}, "depths 3 is no list"),
        ({"dims": (8, 0, 8)}, "dims"),
        ({"strides": (1, (2, 2), 2)}, r"strides .* must be \(z, h, w\)"),
        ({"strides": 2}, "strides 2 is no list"),
        ({"scan_axes": ()}, r"scan_axes \(\)"),
        ({"scan_axes": (0, 3)}, r"scan_axes \(0, 3\)"),
        ({"scan_axes": (-1,)}, r"scan_axes \(-1,\)"),
        ({"in_chans": 0}, "in_chans 0 must be at least 1"),
        ({"ssm_act_layer": "swish"}, "ssm_act_layer 'swish' is unknown"),
        ({"drop_path_rate": 2}, "nor above 1"),
        ({"ssm_d_state": "many"}, "or 'auto'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VSSM3D(**{**SMALL, **options})


def test_volumes_that_cannot_be() -> None:
    model = UNet3D(**SMALL)
    with pytest.raises(InputError, match=r"takes volumes \(b, 1, Z, H, W\), given \(1, 2, 4, 4, 4\)"):
        model(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(InputError, match=r"5×4×4 is not a multiple .*2×4×4; pad it"):
        model(torch.zeros(1, 1, 5, 4, 4))
    with pytest.raises(InputError, match="1×4×4 is smaller than the stages need; give at least 2×4×4"):
        VSSM3D(**SMALL)(torch.zeros(1, 1, 1, 4, 4))
    with pytest.raises(InputError, match="given torch"):
        model(torch.zeros(1, 1, 4, 4, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="two stages and a class"):
        UNet3D(dims=(8,), depths=(1,), strides=(1,))


@pytest.mark.parametrize("sizes", [(4, 5, 6), (1, 3, 3), (2, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_depthwise_convolution_of_volumes(sizes: tuple[int, int, int], bias: bool) -> None:
    x = torch.randn(2, *sizes, 20, dtype=torch.float64)
    inputs = [x, torch.randn(20, 1, 3, 3, 3, dtype=torch.float64), *([torch.randn(20).double()] if bias else [])]

    def run(function, dtype: torch.dtype) -> list[torch.Tensor]:
        own = [t.to(dtype).requires_grad_() for t in inputs]
        y = function(own[0], own[1], own[2] if bias else None)
        return [y, *torch.autograd.grad((y * torch.linspace(0, 1, y.numel()).view(y.shape).to(dtype)).sum(), own)]

    def standard(x, weight, bias):
        return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, padding=1, groups=20).permute(0, 2, 3, 4, 1)

    for one, other in zip(run(depthwise3x3x3, torch.float32), run(standard, torch.float64), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


# ---- the task along each axis --------------------------------------------------------------------------------------


def test_labels_are_the_marks_at_the_lines_beginnings() -> None:
    volumes, labels = make_lines(2, seed=3)
    assert volumes.shape == labels.shape == (2, 3, SIDE, SIDE, SIDE)
    for axis in range(3):
        along = volumes[:, axis].swapaxes(1 + axis, 1)
        assert (along[:, :THICK] == 2 * labels[:, axis].swapaxes(1 + axis, 1)[:, :THICK] - 1).all()
        assert abs(along[:, THICK:]).max() < 0.5
        assert asked()[axis].swapaxes(axis, 0)[FAR:].all()
        assert not asked()[axis].swapaxes(axis, 0)[:FAR].any()


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/volume_axes.py"
    spec = importlib.util.spec_from_file_location("volume_axes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_but_scans_reaches_that_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.layers.mixer.ScanMixer.scan", lambda self, x: torch.zeros_like(x))
    model = benchmark().Network((0, 1, 2))
    volumes = torch.from_numpy(make_lines(1, 0)[0])
    where = torch.from_numpy(asked())
    with torch.inference_mode():
        before = model(volumes)
        for axis in range(3):
            changed = volumes.clone()
            changed.narrow(2 + axis, 0, THICK).normal_()
            moved = (model(changed) != before)[0].any(0)
            assert moved.any()
            assert not moved[where[axis]].any()


@pytest.mark.long
@pytest.mark.parametrize("missing", [None, 1, *(pytest.param(axis, marks=pytest.mark.endless) for axis in (0, 2))])
def test_each_axis_is_learnt_by_its_own_scans(missing: int | None) -> None:
    module = benchmark()
    found = module.train(tuple(axis for axis in range(3) if axis != missing), module.STEPS, seed=1)
    for axis, accuracy in enumerate(found):
        if axis == missing:
            assert accuracy < 0.7
        else:
            assert accuracy > 0.9


# ---- nnU-Net -------------------------------------------------------------------------------------------------------

PLANS = {"strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]], "features_per_stage": [8, 12, 16], "n_stages": 3}


def test_the_network_of_plans() -> None:
    model = unet_of_plans(PLANS, in_chans=2, num_classes=4, deep_supervision=True, ssm_d_state=2)
    assert model.config.depths == (0, 1, 1)
    assert model.config.ssm_d_state == 2
    assert model.decoder.deep_supervision  # which nnU-Net sets
    assert [one.shape[2:] for one in model(torch.randn(1, 2, 4, 8, 8))] == [(4, 8, 8), (2, 4, 4)]
    with pytest.raises(ConfigError, match="2-d network; plan and train '3d_fullres'"):
        unet_of_plans({"strides": [[1, 1], [2, 2]], "features_per_stage": [8, 16]}, 1, 2, False)


def test_the_trainer_beside_what_it_uses_of_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def __init__(self, plans, configuration, fold, dataset_json, device) -> None:
            self.num_epochs = 1000

    class Schedule:
        def __init__(self, optimizer, initial_lr, max_steps) -> None:
            self.given = initial_lr, max_steps

    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.lr_scheduler", "nnunetv2.training.nnUNetTrainer"]
    parts = {
        "lr_scheduler.polylr": ("PolyLRScheduler", Schedule),
        "nnUNetTrainer.nnUNetTrainer": ("nnUNetTrainer", Trainer),
    }
    for name in [*names, *(f"nnunetv2.training.{part}" for part in parts)]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for part, (name, kind) in parts.items():
        setattr(sys.modules[f"nnunetv2.training.{part}"], name, kind)
    folder = Path(importlib.util.find_spec("vmamba.integrations.nnunet").origin).parent  # type: ignore[union-attr, arg-type]
    spec = importlib.util.spec_from_file_location("vmamba_trainer", folder / "vmamba_trainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    trainer = module.nnUNetTrainerVMamba({}, "3d_fullres", 0, {}, torch.device("cpu"))

    class Configuration:
        network_arch_init_kwargs = PLANS

    trainer.network = trainer.build_network_architecture(None, Configuration(), 1, 2, True)
    optimizer, schedule = trainer.configure_optimizers()
    assert schedule.given == (trainer.initial_lr, 1000)
    decayed, others = optimizer.param_groups
    assert len(decayed["params"]) + len(others["params"]) == len(list(trainer.network.parameters()))
    assert others["weight_decay"] == 0.0
    spared = {id(p) for p in others["params"]}
    assert all(id(p) in spared for n, p in trainer.network.named_parameters() if n.endswith(("A_logs", "Ds", "bias")))
