"""How a training step is computed: compiled, with activations computed again, in TensorFloat-32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vmamba
from vmamba.data import Augmentation, DataConfig
from vmamba.errors import ConfigError
from vmamba.layers import VSSBlock
from vmamba.train.accelerator import accelerator_for
from vmamba.train.loop.trainer import Trainer
from vmamba.train.settings.config import TrainConfig

MODEL: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1]}
PLAIN = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "none", 0.0)


@pytest.fixture
def plain(colour_images: Path) -> TrainConfig:
    data = DataConfig("folder", colour_images, image_size=16)
    return TrainConfig(
        model_options=MODEL, data=data, augmentation=PLAIN, epochs=1, batch_size=9, num_workers=0, device="cpu"
    )


def trained(config: TrainConfig, look: Callable[[Trainer], None] = lambda _: None) -> dict[str, Tensor]:
    """The weights after an epoch."""
    config = config.resolved()
    with accelerator_for(config) as accelerator:
        trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
        look(trainer)
        trainer.train_epoch(0)
        return {name: value.clone() for name, value in accelerator.unwrap_model(trainer.model).state_dict().items()}


def test_checkpointing_changes_nothing_but_what_is_kept(plain: TrainConfig) -> None:
    def look(trainer: Trainer) -> None:
        assert all(block.use_checkpoint for block in trainer.model.modules() if isinstance(block, VSSBlock))

    config = replace(plain, drop_path_rate=0.3)
    want, got = trained(config), trained(replace(config, checkpointing=True), look)
    assert all(torch.equal(want[name], got[name]) for name in want)
    stored = vmamba.VSSMConfig(use_checkpoint=True).to_dict()
    assert "use_checkpoint" not in stored  # other machines use the weights


def test_a_compiled_model_learns_the_same_under_the_same_names(
    plain: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    ordinary = nn.Module.compile

    def compile_quickly(module: nn.Module, *args: Any, **options: Any) -> None:
        compiled.append(module)
        ordinary(module, *args, backend="aot_eager", **options)  # without a C++ compiler

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    torch._dynamo.reset()
    config = replace(plain, drop_path_rate=0.0, compile=True, selective_scan_backend="torch")
    want, got = trained(replace(config, compile=False)), trained(config)
    assert [type(module) for module in compiled] == [vmamba.VSSM]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert list(want) == list(got)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_tensorfloat32_is_for_the_run_alone(plain: TrainConfig) -> None:
    before = torch.get_float32_matmul_precision()
    with accelerator_for(replace(plain, device="auto", tf32=True)):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with accelerator_for(plain):
        assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ConfigError, match="TensorFloat-32 is a format of GPUs"):
        replace(plain, tf32=True)


@pytest.mark.parametrize("on", [False, True])
def test_the_average_may_start_with_a_smaller_decay(plain: TrainConfig, on: bool) -> None:
    """Upstream's does not: after two updates its average is still the start's, with a weight of the decay a step."""
    config = replace(plain, ema_decay=0.9999, ema_warmup=on, batch_size=14, drop_path_rate=0.0).resolved()
    with accelerator_for(config) as accelerator:
        trainer = Trainer(config, *config.learnt.load(config.data, {}), accelerator)
        assert trainer.ema is not None
        trainer.train_epoch(0)  # 27 images: two updates
        assert trainer.updates == 2
        decays = [trainer.ema.get_decay(update) for update in (2, 1000)]
    assert decays == ([pytest.approx(1 - 2 ** (-2 / 3)), pytest.approx(0.99, abs=1e-3)] if on else [0.9999] * 2)
