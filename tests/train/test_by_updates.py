"""Training counted in updates: epochs of a fixed number, the poly schedule, and decay by parameters' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vmamba.data import DataConfig
from vmamba.errors import ConfigError
from vmamba.train.config import TrainConfig
from vmamba.train.optimizer import PolySchedule, parameter_groups
from vmamba.train.sampler import EpochSampler


def test_epochs_of_any_length_go_through_whole_passes() -> None:
    plain, counted = EpochSampler(10, 3), EpochSampler(10, 3, taken=7)
    passes = []
    for epoch in range(7):
        plain.epoch = epoch
        passes += list(plain)
    keys = []
    for epoch in range(10):
        counted.epoch = epoch
        assert len(list(counted)) == len(counted) == 7
        keys += list(counted)
    assert keys == passes
    longer = EpochSampler(10, 3, taken=25)
    assert list(longer) == passes[:25]
    longer.epoch = 1
    assert list(longer) == passes[25:50]


def test_poly_is_openmmlabs() -> None:
    config = TrainConfig(
        epochs=10, epoch_updates=16000, lr=6e-5, warmup_lr=6e-11, warmup_updates=1500, min_lr=0.0, schedule="poly"
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = PolySchedule(optimizer, config, 16000)
    rates = {}
    for update in (0, 750, 1500, 80750, 160000):
        schedule.step_update(update)
        rates[update] = optimizer.param_groups[0]["lr"]
    want = {0: 6e-11, 750: 6e-5 * (1e-6 + (1 - 1e-6) / 2), 1500: 6e-5, 80750: 3e-5, 160000: 0.0}
    assert rates == pytest.approx(want, rel=1e-9)
    squared = PolySchedule(optimizer, TrainConfig(epochs=2, lr=1.0, min_lr=0.1, poly_power=2.0, warmup_updates=0), 50)
    assert squared.factor(50) == pytest.approx(0.1 + 0.9 * 0.25)


def test_only_what_is_called_so_is_exempt_from_decay() -> None:
    from vmamba.architecture.segmenter_variants import segmenter_config
    from vmamba.heads import build_segmenter

    config = segmenter_config("upernet_vmamba_tiny_s1l8")
    with torch.device("meta"):
        model = build_segmenter(config)
    groups = parameter_groups(model, TrainConfig(lr=1e-3, weight_decay=0.01, undecayed=("norm",)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)]: group["weight_decay"] > 0 for group in groups for p in group["params"]}
    assert {name for name, decay in decayed.items() if not decay} == {name for name in decayed if "norm" in name}
    for name in (
        "backbone.outnorm0.weight",
        "backbone.layers.0.blocks.0.norm.weight",
        "backbone.layers.0.blocks.0.op.out_norm.bias",
    ):
        assert not decayed[name]
    # The norms of patch embedding and downsampling, the heads' batch norms, and biases decay.
    for name in ("backbone.patch_embed.2.weight", "backbone.layers.0.downsample.3.weight",
                 "decode_head.bottleneck.bn.weight", "decode_head.conv_seg.bias"):  # fmt: skip
        assert decayed[name]


def test_the_recipe_says_what_upstream_did() -> None:
    config = TrainConfig(recipe="upernet_ade20k", data=DataConfig("masks", Path("/ade"))).resolved()
    assert (config.task, config.schedule, config.undecayed) == ("segmentation", "poly", ("norm",))
    assert config.epochs * config.epoch_updates == 160_000  # type: ignore[operator]
    assert (config.lr, config.weight_decay, config.warmup_updates, config.min_lr) == (6e-5, 0.01, 1500, 0.0)
    assert (config.task_options["resize"], config.task_options["scale"]) == ([2048, 512], [0.5, 2.0])
    assert (config.clip_grad, config.ema_decay, config.model) == (0.0, 0.0, "upernet_vmamba_tiny_s1l8")


def test_what_makes_no_sense() -> None:
    for given, said in (({"epoch_updates": 0}, "epoch_updates=0"), ({"poly_power": 0.0}, "poly_power=0.0"),
                        ({"warmup_updates": -1}, "warmup_updates=-1")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            TrainConfig(**given)  # type: ignore[arg-type]
