"""Muon: orthogonal updates of matrices, AdamW's of all else, and nothing at all where an update is left out."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from vmamba import create_model
from vmamba.data import DataConfig
from vmamba.train.loop.muon import Muon, made_orthogonal, orthogonal
from vmamba.train.loop.optimizer import is_matrix, make_optimizer, parameter_groups
from vmamba.train.settings.config import TrainConfig

CONFIG = TrainConfig(data=DataConfig("digits"), optimizer="muon", lr=2e-3, weight_decay=0.05).resolved()


class Small(nn.Module):
    """One parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(24, 48)
        self.conv = nn.Conv2d(16, 20, 3)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.x_proj_weight = nn.Parameter(torch.randn(4, 18, 32))
        self.dt_projs_weight = nn.Parameter(torch.randn(4, 32, 16))
        self.A_logs = nn.Parameter(torch.randn(64, 16))
        self.head = nn.Linear(48, 10)

    def draw_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


MATRICES = {"linear.weight", "conv.weight", "x_proj_weight"}


#: Found again by `best_quintic`; all but the last are of x / 1.01.
QUINTICS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)


def by_the_paper(gradients: list[Tensor], start: Tensor, lr: float, decay: float) -> Tensor:
    """arXiv 2502.16982, §2, with the post's momentum and arXiv 2505.16932's steps, in plain loops and float64.

    ``start`` is one matrix.
    """
    weight, average = start.double(), torch.zeros_like(start, dtype=torch.float64)
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient.double()
        x = 0.05 * gradient.double() + 0.95 * average
        x = x / (1.01 * x.norm())
        for a, b, c in QUINTICS:
            x = x if (a, b, c) == QUINTICS[-1] else x / 1.01
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        weight = weight - lr * (0.2 * math.sqrt(max(x.shape)) * x + decay * weight)
    return weight


def best_quintic(low: float, high: float) -> tuple[npt.NDArray[np.float64], float]:
    """The odd quintic nearest to 1 on an interval, and its distance, by Remez's exchange."""
    places = np.linspace(low, high, 4)
    for _ in range(50):
        system = np.stack([places, places**3, places**5, [1, -1, 1, -1]], axis=1)
        *quintic, distance = np.linalg.solve(system, np.ones(4))
        a, b, c = quintic
        bends = np.sort(np.roots([5 * c, 0, 3 * b, 0, a]).real)
        places = np.array([low, *bends[bends > 0], high])
    return np.array(quintic), abs(float(distance))


def test_each_quintic_is_the_best_on_what_the_ones_before_leave() -> None:
    low, high = 0.003, 1.0
    for quintic in QUINTICS:
        best, distance = best_quintic(low, high)
        np.testing.assert_allclose(quintic, best, atol=6e-5)
        low, high = 1 - distance, 1 + distance
    assert 0.8 < low < high < 1.2


# A square matrix goes by its own steps, the others by their squares'.
@pytest.mark.parametrize("shape", [(16, 16), (16, 18), (16, 144), (96, 24)])
def test_an_orthogonal_update_keeps_the_directions_and_evens_their_sizes(shape: tuple[int, int]) -> None:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    before = torch.logspace(math.log10(0.004), 0, min(shape), dtype=torch.float64)
    matrix = left @ before.diag() @ right
    before /= before.norm()
    update = orthogonal(matrix.float()[None])[0].double()
    sizes = left.T @ update @ right.T
    assert (sizes - sizes.diag().diag()).abs().max() < 5e-4
    assert sizes.diag()[before >= 0.003].min() > 0.77
    assert sizes.diag().max() < 1.2
    torch.testing.assert_close(orthogonal(1e4 * matrix.float()[None])[0].double(), update, rtol=0, atol=5e-4)


def test_what_is_next_to_nothing_is_raised_by_a_bounded_factor() -> None:
    """Also where the squares of such sizes are below float32's resolution."""
    for shape in ((8, 8), (8, 64)):
        random = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        left, _, right = torch.linalg.svd(random, full_matrices=False)
        before = torch.tensor([1, 0.1, 1e-4, 1e-5, 1e-6, 1e-7, 0, 0], dtype=torch.float64)
        sizes = left.T @ orthogonal((left @ before.diag() @ right).float()[None])[0].double() @ right.T
        after = sizes.diag().abs()
        assert (after[2:] < 300 * before[2:] + 5e-4).all(), after
        assert (after[:2] > 0.77).all()


def hard_cases() -> dict[str, Tensor]:
    """Matrices whose largest singular value is, but for rounding, their norm; and small random ones."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    cases = {"constant": torch.ones(1, 96, 384), "gaussian": drawn(200, 16, 16), "wider": drawn(200, 16, 18)}
    for rows, columns in ((16, 16), (16, 64), (64, 128)):
        one = drawn(20, rows, 1) @ drawn(20, 1, columns)
        cases[f"rank 1, {rows} x {columns}"] = one
        cases[f"nearly rank 1, {rows} x {columns}"] = one + 0.01 * drawn(20, rows, columns)
    return cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_rounding_never_sends_a_size_beyond_the_quintics(
    dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    for name, matrices in hard_cases().items():
        sizes = torch.linalg.svdvals(made_orthogonal(matrices.to(dtype)).double())
        assert sizes.max() < (1.2 if dtype == torch.float32 else 1.3), name
        assert sizes[:, 0].min() > 0.7, name


def test_matrices_of_a_stack_do_not_know_of_each_other() -> None:
    stack = torch.randn(4, 18, 32, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([orthogonal(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonal(stack), alone, rtol=1e-5, atol=1e-6)
    stack[1] = 0
    assert not orthogonal(stack)[1].any()
    assert orthogonal(stack).isfinite().all()


def test_steps_are_the_papers() -> None:
    model = Small()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer, gradients = make_optimizer(model, CONFIG), []
    for seed in range(4):
        model.draw_gradients(seed)
        gradients.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
        optimizer.step()
    now = dict(model.named_parameters())
    for name in ("linear.weight", "conv.weight"):
        want = by_the_paper([g[name].flatten(1) for g in gradients], start[name].flatten(1), 2e-3, 0.05)
        torch.testing.assert_close(now[name].double().flatten(1), want, rtol=0, atol=2e-6)
    for i in range(4):
        want = by_the_paper([g["x_proj_weight"][i] for g in gradients], start["x_proj_weight"][i], 2e-3, 0.05)
        torch.testing.assert_close(now["x_proj_weight"][i].double(), want, rtol=0, atol=2e-6)


def test_all_else_is_adamws() -> None:
    ours, theirs = Small(), Small()
    muon, adamw = make_optimizer(ours, CONFIG), make_optimizer(theirs, replace(CONFIG, optimizer="adamw"))
    assert type(adamw) is torch.optim.AdamW
    for seed in range(3):
        ours.draw_gradients(seed)
        theirs.draw_gradients(seed)
        muon.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) == (name not in MATRICES), name


def test_which_parameters_are_matrices() -> None:
    assert {name for name, value in Small().named_parameters() if is_matrix(name, value)} == MATRICES
    with torch.device("meta"):
        model = create_model("vmamba_tiny_s1l8", posembed=True, imgsize=224)
    names = [name for name, value in model.named_parameters() if is_matrix(name, value)]
    inner = {re.sub(r".*blocks\.\d+\.", "", name) for name in names if "blocks" in name}
    assert inner == {"op.in_proj.weight", "op.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "op.x_proj_weight"}
    assert {name for name in names if "blocks" not in name} == {
        *(f"layers.{stage}.downsample.1.weight" for stage in range(3)),
        *("patch_embed.0.weight", "patch_embed.5.weight", "classifier.head.weight"),
    }


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_groups_are_adamws_cut_in_two(layer_decay: float) -> None:
    model = create_model("vmamba_nano")
    whole = parameter_groups(model, replace(CONFIG, optimizer="adamw", layer_decay=layer_decay))
    parts = parameter_groups(model, replace(CONFIG, layer_decay=layer_decay))

    def of(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
        return {id(p): (g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}

    assert of(whole) == of(parts)
    flagged = {id(p) for group in parts if group.get("matrices") for p in group["params"]}
    assert flagged == {id(p) for name, p in model.named_parameters() if is_matrix(name, p)}


def test_going_on_from_a_stored_state_is_going_on() -> None:
    model = Small()
    optimizer = make_optimizer(model, CONFIG)
    model.draw_gradients(0)
    optimizer.step()
    twin = copy.deepcopy(model)
    resumed = make_optimizer(twin, CONFIG)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, its in ((model, optimizer), (twin, resumed)):
        net.draw_gradients(1)
        its.step()
    assert all(torch.equal(mine, other) for mine, other in zip(model.parameters(), twin.parameters(), strict=True))


def test_an_update_that_is_left_out_on_the_device_changes_nothing() -> None:
    model = Small()
    optimizer = make_optimizer(model, CONFIG)
    assert isinstance(optimizer, Muon)
    model.draw_gradients(0)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    untold = Small()
    untold.draw_gradients(0)
    make_optimizer(untold, CONFIG).step()
    assert all(torch.equal(mine, other) for mine, other in zip(model.parameters(), untold.parameters(), strict=True))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    model.draw_gradients(1)
    assert model.linear.weight.grad is not None
    model.linear.weight.grad[0, 0] = float("nan")
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    for number, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[number][key], value) for key, value in entries.items())


def test_a_parameter_without_gradient_is_left_as_it_is() -> None:
    model = Small()
    model.draw_gradients(0)
    model.linear.weight.grad = None
    before = model.linear.weight.detach().clone()
    make_optimizer(model, CONFIG).step()
    assert torch.equal(model.linear.weight, before)
