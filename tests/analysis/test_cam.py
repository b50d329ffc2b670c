"""Grad-CAM over channels-last maps, against its definition written out, and where it must point."""

from __future__ import annotations

import pytest
import torch

import vmamba
from vmamba.analysis.cam import class_map
from vmamba.errors import ConfigError


def test_it_is_the_definition() -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", num_classes=7).double().train()
    image = torch.randn(3, 64, 96, dtype=torch.float64)
    found = class_map(model, image, label=4)
    assert model.training
    model.eval()
    (features,) = model.forward_intermediates(image[None], 1, output_fmt="NHWC", intermediates_only=True)
    features = features.detach().requires_grad_(True)
    logits = model.forward_head(model.classifier.norm(features))
    (gradient,) = torch.autograd.grad(logits[0, 4], features)
    want = torch.einsum("hwc,c->hw", features[0], gradient[0].mean((0, 1))).clamp(min=0).detach()
    assert found.weights.shape == (2, 3)
    assert torch.allclose(found.weights, want / want.max(), atol=1e-9)
    assert found.logit == pytest.approx(logits[0, 4].item())
    assert class_map(model, image).label == int(logits.argmax())


def test_an_earlier_stage() -> None:
    model = vmamba.create_model("vmamba_nano", num_classes=3)
    assert class_map(model, torch.randn(3, 64, 64), stage=0).weights.shape == (16, 16)


def test_mistakes() -> None:
    model = vmamba.create_model("vmamba_nano", num_classes=3)
    image = torch.zeros(3, 32, 32)
    with pytest.raises(ConfigError, match="label=3: the model has 3 classes"):
        class_map(model, image, label=3)
    with pytest.raises(ConfigError, match="stage=9"):
        class_map(model, image, stage=9)
    with pytest.raises(ConfigError, match="one image"):
        class_map(model, torch.zeros(3, 32))
    with pytest.raises(ConfigError, match="no logits of classes"):
        class_map(vmamba.Backbone_VSSM(depths=(1,), dims=(8,), out_indices=(0,)), image)
