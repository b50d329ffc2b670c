"""The scan is what carries information across the image: without its output the same model stays at chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vmamba
from vmamba.data import DataConfig
from vmamba.data.long_range import GAP, SIZE, make_marks
from vmamba.tasks.train import TrainConfig, train

#: Far from both: chance is 0.5, and the standard error of 1,024 test images at chance is 0.016.
NEAR_CHANCE = 0.58
SOLVED = 0.95


def no_scan(_: vmamba.SS2D, x: Tensor) -> Tensor:
    """What stands for the scan in the ablated model: nothing comes out of it."""
    return torch.zeros(x.shape, dtype=torch.float32, device=x.device)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "no scan"])
def test_no_place_sees_both_marks_but_through_the_scan(scan: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing one mark's pixels moves some last-stage token near the other mark if and only if there is a scan."""
    if not scan:
        monkeypatch.setattr(vmamba.SS2D, "scan", no_scan)
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", num_classes=2).double().eval()
    pixels, _ = make_marks(1, 0)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    middle = (
        SIZE[1] - GAP
    ) // 2  # columns up to here hold the left mark, columns from the mirrored place the right one
    changed = {"left": image.clone(), "right": image.clone()}
    changed["left"][..., :middle] = torch.rand(1, 3, SIZE[0], middle, dtype=torch.float64)
    changed["right"][..., SIZE[1] - middle :] = torch.rand(1, 3, SIZE[0], middle, dtype=torch.float64)
    with torch.no_grad():
        before = model.forward_features(image)
        moved = {side: (model.forward_features(x) != before).any(-1) for side, x in changed.items()}
    assert moved["left"].any()
    assert moved["right"].any()
    assert bool((moved["left"] & moved["right"]).any()) == scan


@pytest.mark.long
def test_marks_are_learnt_with_the_scan_and_not_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accuracy(name: str) -> float:
        result = train(TrainConfig(data=DataConfig("marks"), device="cpu", output=tmp_path / name))
        assert result.test_accuracy is not None
        return result.test_accuracy

    assert accuracy("scan") >= SOLVED
    monkeypatch.setattr(vmamba.SS2D, "scan", no_scan)
    assert accuracy("no_scan") <= NEAR_CHANCE
