"""Which parameters decay: upstream's rule, written down for every parameter of every released model."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vmamba import create_model
from vmamba.train.config import TrainConfig
from vmamba.train.optimizer import make_optimizer, parameter_groups
from vmamba.weights.released import OFFICIAL

#: By model and by parameter, with N for the numbers of stage and block: whether it decays, and how many there are.
STORED: dict[str, dict[str, list[Any]]] = json.loads((Path(__file__).parent / "weight_decay.json").read_text())
CONFIG = TrainConfig(weight_decay=0.05, lr=1e-3)


def meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def decayed(model: nn.Module, config: TrainConfig = CONFIG) -> dict[str, bool]:
    """By name, in the model's order."""
    by_id = {id(p): group["weight_decay"] > 0 for group in parameter_groups(model, config) for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


def pattern(name: str) -> str:
    return re.sub(r"(layers|blocks)\.\d+", r"\1.N", name)


def group_of(groups: dict[str, bool], wanted: str) -> bool:
    (same,) = {group for name, group in groups.items() if pattern(name) == wanted}
    return same


@pytest.mark.parametrize("name", [name for name, weights in OFFICIAL.items() if weights.task == "classification"])
def test_every_parameter_of_every_released_model(name: str) -> None:
    model = meta(name)
    groups = decayed(model)
    seen = Counter(map(pattern, groups))
    assert {k: [group_of(groups, k), n] for k, n in seen.items()} == STORED[name]
    for parameter, value in model.named_parameters():
        # set_weight_decay of upstream's utils/optimizer.py, whose models name pos_embed.
        exempt = len(value.shape) == 1 or parameter.endswith(".bias") or parameter in ("pos_embed",)
        assert groups[parameter] is not exempt, parameter


def test_the_scans_parameters_may_be_left_out() -> None:
    model = meta("vmamba_tiny_s1l8")
    on, off = decayed(model), decayed(model, replace(CONFIG, decay_ssm=False))
    differing = {name.rpartition(".")[2] for name in on if on[name] != off[name]}
    assert differing == {"A_logs", "dt_projs_bias"}
    assert not any(decays for name, decays in {**on, **off}.items() if name.endswith("Ds"))
    assert not any(decayed(model, replace(CONFIG, weight_decay=0.0)).values())


def test_positions_do_not_decay() -> None:
    assert decayed(meta("vmamba_nano", posembed=True, imgsize=32))["pos_embed"] is False


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_groups_are_those_that_earlier_versions_stored(layer_decay: float) -> None:
    """Optimizers' states name parameters by number: the same ones must stand in the same places."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    model = create_model("vmamba_nano", posembed=True, imgsize=32)
    spared = model.no_weight_decay()
    earlier = (
        param_groups_weight_decay(model, 0.05, no_weight_decay_list=spared)
        if layer_decay == 1.0
        else param_groups_layer_decay(model, 0.05, no_weight_decay_list=spared, layer_decay=layer_decay)
    )
    now = parameter_groups(model, replace(CONFIG, decay_ssm=False, layer_decay=layer_decay))
    assert len(now) == len(earlier)
    for mine, theirs in zip(now, earlier, strict=True):
        assert [id(p) for p in mine["params"]] == [id(p) for p in theirs["params"]]
        assert mine["weight_decay"] == theirs["weight_decay"]
        assert mine.get("lr_scale", 1.0) == pytest.approx(theirs.get("lr_scale", 1.0))


def test_it_is_adamw_with_the_papers_betas() -> None:
    model = create_model("vmamba_nano")
    model.patch_embed.requires_grad_(False)
    optimizer = make_optimizer(model, CONFIG)
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["betas"], group["eps"], group["lr"]) for group in optimizer.param_groups} == {
        ((0.9, 0.999), 1e-8, 1e-3)
    }
    learning = sum(len(group["params"]) for group in optimizer.param_groups)
    assert learning == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))
