"""Segmenters optimized: packed backbones, batch norms folded, the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vmamba
from vmamba.inference.pack import fold_batch_norms, pack
from vmamba.kernels.native.products import obstacle

SMALL: dict[str, Any] = {"num_classes": 3, "imgsize": 64, "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
DECODERS = ("upernet", "unet", "fpn")


def made(decoder: str) -> nn.Module:
    """With running statistics as training leaves them, so that a norm that is left out shows."""
    torch.manual_seed(0)
    model: nn.Module = vmamba.create_model(f"{decoder}_vmamba_nano", **SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize("decoder", DECODERS)
def test_folded_batch_norms_give_the_same_logits(decoder: str) -> None:
    model, image = made(decoder), torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        want = model(image)
        count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert fold_batch_norms(model) == count
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(model(image), want, atol=1e-5 * float(want.abs().max()), rtol=0)
    assert count == 1 if decoder == "fpn" else count > 1  # its decoder's norms are over groups, its auxiliary head's not


def test_a_norm_with_a_hook_stays() -> None:
    model = made("upernet")
    model.decode_head.bottleneck.bn.register_forward_hook(lambda module, inputs, output: output * 2)
    before = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert fold_batch_norms(model) == before - 1


@pytest.mark.skipif(bool(obstacle(torch.float32)), reason="no packed products here")
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_packed_segmenter_gives_the_models_logits(decoder: str) -> None:
    model, image = made(decoder), torch.randn(1, 3, 64, 72)
    with torch.no_grad():
        want = model(image)
        assert pack(model, torch.float32) == 4
        torch.testing.assert_close(model(image), want, atol=1e-4 * float(want.abs().max()), rtol=0)


def test_optimize_takes_its_example_from_the_configuration() -> None:
    model = made("upernet")
    fast = vmamba.optimize(model, compile=False)
    assert {engine.name for engine in fast.engines} == {"eager", "packed"}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(image)
    torch.testing.assert_close(fast(image), want, atol=1e-4 * float(want.abs().max()), rtol=0)
