"""The loss of a batch, and the options around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.heads import segmentation_loss
from vmamba.tasks.options import changed, sorted_options
from vmamba.tasks.segmentation.objective import PixelLoss
from vmamba.tasks.segmentation.options import InferenceOptions, TrainingOptions

NOTHING = SimpleNamespace(mixup=0.0, cutmix=0.0, label_smoothing=0.0)


class Heads(nn.Module):
    def __init__(self, auxiliary: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2) if auxiliary else None)

    def forward(self, x: Tensor, own_strides: bool = False) -> tuple[Tensor, Tensor | None]:
        assert own_strides
        return self.scores


def batch() -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = 255
    return torch.zeros(2, 3, 16, 16), labels


@pytest.mark.parametrize("auxiliary", [True, False])
def test_cross_entropy_is_the_heads_own(auxiliary: bool) -> None:
    model, data = Heads(auxiliary), batch()
    result = PixelLoss(NOTHING, TrainingOptions()).loss(model, data)  # type: ignore[arg-type]
    want = segmentation_loss(model.scores[0], data[1])
    if auxiliary:
        want = want + 0.4 * segmentation_loss(model.scores[1], data[1])
    torch.testing.assert_close(result.loss, want)
    assert 0 < result.sums["aacc"] < 2
    assert result.count == 2


def test_weights_of_classes() -> None:
    model, (pixels, labels) = Heads(False), batch()
    labels[:] = 2
    plain = PixelLoss(NOTHING, TrainingOptions()).loss(model, (pixels, labels))  # type: ignore[arg-type]
    heavy = PixelLoss(NOTHING, TrainingOptions(), (1.0, 1.0, 3.0)).loss(model, (pixels, labels))  # type: ignore[arg-type]
    torch.testing.assert_close(heavy.loss, 3 * plain.loss)


def test_dice_is_added() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    model, data = Heads(False), batch()
    plain = PixelLoss(NOTHING, TrainingOptions()).loss(model, data)  # type: ignore[arg-type]
    both = PixelLoss(NOTHING, TrainingOptions(loss="dice")).loss(model, data)  # type: ignore[arg-type]
    scores = nn.functional.interpolate(model.scores[0], (16, 16), mode="bilinear").softmax(1)
    known = (data[1] != 255)[:, None]
    truth = nn.functional.one_hot(data[1].clamp(max=2), 3).permute(0, 3, 1, 2) * known
    shared, whole = (scores * truth).sum((0, 2, 3)), ((scores * known) + truth).sum((0, 2, 3))
    torch.testing.assert_close(both.loss - plain.loss, (1 - 2 * shared / whole).mean(), rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_label_has_a_finite_loss() -> None:
    pixels, labels = batch()
    result = PixelLoss(NOTHING, TrainingOptions()).loss(Heads(), (pixels, torch.full_like(labels, 255)))  # type: ignore[arg-type]
    assert result.loss == 0
    assert result.sums["aacc"] == 0


def test_pixels_are_not_mixed() -> None:
    for given in ({"mixup": 0.8}, {"cutmix": 1.0}, {"label_smoothing": 0.1}):
        with pytest.raises(ConfigError, match="classes are not mixed; give 0 for each"):
            PixelLoss(SimpleNamespace(**{**vars(NOTHING), **given}), TrainingOptions())  # type: ignore[arg-type]


def test_options_are_sorted_and_typed() -> None:
    kinds = ("segmentation", TrainingOptions, InferenceOptions)
    training, inference = sorted_options(
        *kinds, {"loss": "dice", "resize": [2048, 512], "scale": [0.5, 2.0], "class_weights": "none"}
    )
    assert (training.loss, training.scale, training.class_weights) == ("dice", (0.5, 2.0), None)
    assert inference.resize == (2048, 512)
    for given, said in (
        ({"los": "dice"}, "segmentation has no 'los'; did you mean 'loss'"),
        ({"loss": "hinge"}, "task_options"),
        ({"crops": 0}, "want 0 or more, 1 or more"),
        ({"scales": [0.0]}, "want factors above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            sorted_options(*kinds, given)
    other = changed(InferenceOptions(resize=(2048, 512)), "segmentation", {"mode": "slide", "window": 64, "stride": 48})
    assert (other.tiling(512).window, other.tiling(512).stride, other.resize) == ((64, 64), (48, 48), (2048, 512))
    assert InferenceOptions().tiling(96).stride == (64, 64)
    with pytest.raises(ConfigError, match="there is no 'loss'"):
        changed(InferenceOptions(), "segmentation", {"loss": "dice"})
