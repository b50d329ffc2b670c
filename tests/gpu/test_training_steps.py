"""Training on a GPU: no step waits for it, and a loss that is not finite spoils nothing until it is noticed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vmamba.data import Augmentation, DataConfig
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.train.accelerator import accelerator_for
from vmamba.train.loop.guard import Fault
from vmamba.train.loop.muon import orthogonal
from vmamba.train.loop.trainer import Hooks, Trainer
from vmamba.train.settings.config import TrainConfig

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


@pytest.fixture(params=["adamw", "muon"])
def trainer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Trainer]:
    config = TrainConfig(
        optimizer=request.param,
        model_options={"dims": [16, 32], "depths": [1, 1]},
        data=DataConfig("digits", train_images=240),
        augmentation=Augmentation((0.7, 1.0)),
        batch_size=8,
        epochs=4,
        ema_decay=0.99,
        mixup=0.8,
        cutmix=1.0,
        drop_path_rate=0.1,
        clip_grad=5.0,
        num_workers=0,
        device="cuda",
        log_every=10,
        output=tmp_path,
    ).resolved()
    with accelerator_for(config) as accelerator:
        trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
        if not trainer.updater.on_device:  # the optimizer is not fused yet
            for group in trainer.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
            trainer.updater.on_device = True
        yield trainer
        torch.cuda.set_sync_debug_mode("default")


class Steps(Hooks):
    """Forbids waiting for the device from the second look on, but for the looks themselves."""

    def __init__(self, trainer: Trainer) -> None:
        self.looks = 0
        self.found: list[Fault] = []
        self.steps = 0
        plain = trainer.look

        def look(hooks: Hooks) -> None:
            torch.cuda.set_sync_debug_mode("default")
            plain(hooks)

        trainer.look = look  # type: ignore[method-assign]

    def looked(self, step: int, figures: Any, speed: float) -> None:
        self.looks += 1

    def updated(self, step: int) -> None:
        self.steps += 1
        # Kernels are compiled in the first steps; after the last step the epoch's figures are read.
        torch.cuda.set_sync_debug_mode("error" if self.looks and step < 30 else "default")

    def faults(self, found: list[Fault]) -> None:
        self.found += found


def test_no_step_waits_for_the_device(trainer: Trainer) -> None:
    hooks = Steps(trainer)
    trained = trainer.train_epoch(0, hooks)
    assert math.isfinite(trained.figures["loss"])
    assert (hooks.looks, hooks.steps) == (3, 30)


def test_a_loss_that_is_not_finite_is_noticed_later_and_spoils_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls, weights = CrossEntropy.loss, [], {}

    def loss(objective: CrossEntropy, model: Any, batch: Any) -> Any:
        calls.append(None)
        result = plain(objective, model, batch)
        if len(calls) != 13:
            return result
        weights.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return replace(result, loss=result.loss * math.nan)

    monkeypatch.setattr(CrossEntropy, "loss", loss)

    class Stop(Hooks):
        def faults(self, found: list[Fault]) -> None:
            assert [(fault.step, fault.fatal) for fault in found] == [(12, True)]
            assert len(calls) == 20
            assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.train_epoch(0, Stop())


def test_muons_updates_are_orthogonal_in_bfloat16() -> None:
    """Steep polynomials: a size that rounding lifts past their interval would end at millions."""
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    for rows, columns in ((16, 16), (16, 18), (64, 128), (256, 1152)):
        one = drawn(8, rows, 1) @ drawn(8, 1, columns)
        for matrices in (drawn(8, rows, columns), one, one + 0.01 * drawn(8, rows, columns)):
            update = orthogonal(matrices)
            assert update.dtype == torch.bfloat16
            largest = torch.linalg.svdvals(update.double())[:, 0]
            assert largest.min() > 0.7
            assert largest.max() < 1.3
