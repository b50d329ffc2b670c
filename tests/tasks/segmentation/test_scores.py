"""Counts of pixels against torchmetrics, against distances by hand, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vmamba.errors import DataError
from vmamba.tasks.segmentation.distances import hausdorff95
from vmamba.tasks.segmentation.scores import PixelMeter

NAMES = ("a", "b", "c", "d")


def random_pairs(classes: int = 3) -> tuple[list[Tensor], dict]:
    random = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, classes, (h, w), generator=random).int() for h, w in ((9, 7), (5, 11), (8, 8))]
    answers = [
        torch.where(torch.rand(x.shape, generator=random) < 0.6, x, (x + 1) % classes).to(torch.uint8) for x in labels
    ]
    labels[1][0] = 255
    return answers, {"labels": labels, "names": ["x", "y", "z"]}


def measured(answers: list[Tensor], batch: dict, **options: bool):  # type: ignore[no-untyped-def]
    meter = PixelMeter(NAMES, 255, **options)
    meter.update(meter.observe(answers, batch))
    return meter.measurement()


def test_ratios_are_torchmetrics_where_a_class_occurs() -> None:
    from torchmetrics.functional.classification import (
        multiclass_jaccard_index,
        multiclass_recall,
        multiclass_specificity,
    )

    answers, batch = random_pairs()
    scores = measured(answers, batch)
    flat = [torch.cat([each.flatten().long() for each in parts]) for parts in (answers, batch["labels"])]
    rows = scores.classes
    known = {"num_classes": 4, "average": None, "ignore_index": 255}
    for metric, name in ((multiclass_jaccard_index, "iou"), (multiclass_recall, "sensitivity"),
                         (multiclass_specificity, "specificity")):  # fmt: skip
        want = metric(*flat, **known)[:3].tolist()
        assert [getattr(row, name) for row in rows[:3]] == pytest.approx(want, abs=1e-6), name
    assert [row.dice for row in rows[:3]] == pytest.approx([2 * row.iou / (1 + row.iou) for row in rows[:3]])


def test_an_absent_class_is_in_no_mean_and_one_only_answered_is() -> None:
    answers, batch = random_pairs()
    scores = measured(answers, batch)
    assert scores.classes[3].iou is None
    assert scores.figures["miou"] == pytest.approx(sum(row.iou for row in scores.classes[:3]) / 3)
    answers[0][0, 0] = 3
    again = measured(answers, batch)
    assert again.classes[3].iou == 0.0
    assert again.classes[3].sensitivity is None
    assert again.figures["miou"] == pytest.approx(sum(row.iou for row in again.classes) / 4)


def test_ignored_pixels_count_nowhere() -> None:
    answers, batch = random_pairs()
    before = measured(answers, batch).to_dict()
    answers[1][0] = 3
    assert measured(answers, batch).to_dict() == before
    assert sum(map(sum, before["confusion"])) == 9 * 7 + 4 * 11 + 64
    with pytest.raises(DataError, match="no pixel of 1 image"):
        measured([torch.zeros(2, 2)], {"labels": [torch.full((2, 2), 255)], "names": ["x"]})


def test_images_in_parts_and_in_any_number_of_batches() -> None:
    answers, batch = random_pairs()
    meter = PixelMeter(NAMES, 255)
    for index in range(3):
        one = {name: values[index : index + 1] for name, values in batch.items()}
        meter.update(meter.observe(answers[index : index + 1], one))
    assert meter.measurement() == measured(answers, batch)
    assert [row.name for row in meter.measurement().images] == ["x", "y", "z"]


def test_distances_of_borders() -> None:
    one, other = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    one[10:20, 10:20] = True
    other[10:20, 13:23] = True
    assert hausdorff95(one, one) == 0.0
    assert hausdorff95(one, other) == 3.0
    # By hand: all border pixels of both, the nearest of the other's.
    other[30, 30] = True

    def border(mask: np.ndarray) -> np.ndarray:
        inner = mask.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            inner &= np.roll(mask, step, axis)
        return np.argwhere(mask & ~inner)

    a, b = border(one), border(other)
    table = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    assert hausdorff95(one, other) == pytest.approx(np.percentile([*table.min(1), *table.min(0)], 95))


def test_distances_for_each_class_and_image() -> None:
    labels, answer = torch.zeros(30, 30).int(), torch.zeros(30, 30, dtype=torch.uint8)
    labels[5:15, 5:15] = 1
    answer[5:15, 7:17] = 1
    answer[25:, 25:] = 2
    scores = measured([answer], {"labels": [labels], "names": ["x"]}, distances=True)
    assert scores.classes[1].hd95 == 2.0
    assert scores.classes[2].hd95 is None, "nowhere in the labels"
    assert scores.to_dict()["images"][0]["hd95"]["b"] == 2.0
    assert "HD95" in scores.summary()
