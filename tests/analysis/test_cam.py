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


def test_of_a_segmenter_it_is_the_class_of_most_places_beside_the_background() -> None:
    torch.manual_seed(0)
    tiny = {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "decode_head": {"channels": 8}}
    model = vmamba.create_model("upernet_vmamba_nano", num_classes=5, **tiny).eval()
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        logits = model(image[None])[0]
    labels = logits.argmax(0)
    counts = labels.flatten().bincount(minlength=5)
    first, second, *_, last = counts.argsort(descending=True).tolist()
    assert counts[second] > 0 == counts[last]
    assert class_map(model, image).label == first
    found = class_map(model, image, background=[first])
    assert found.label == second
    assert found.logit == pytest.approx(logits[second][labels == second].mean().item(), rel=1e-4)
    assert class_map(model, image, background=range(5)).label == first, "there is nothing else"
    nowhere = class_map(model, image, label=last)
    assert nowhere.logit == pytest.approx(logits[last].mean().item(), rel=1e-4)
    assert nowhere.weights.shape == (2, 2)


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
