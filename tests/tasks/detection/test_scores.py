"""Average precision on cases that one can count, and against torchmetrics."""

import numpy as np
import pytest
import torch

from vmamba.data.detection.sets import packed
from vmamba.heads.mask_rcnn import Detections
from vmamba.tasks.detection.scores import DetectionMeter

SIZE = (40, 40)


def mask(x1, y1, x2, y2):
    pixels = np.zeros(SIZE, bool)
    pixels[int(y1) : int(y2), int(x1) : int(x2)] = True
    return pixels


def truth(box, label, crowd=0):
    x1, y1, x2, y2 = box
    return {"category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": packed(mask(*box)),
            "area": float(mask(*box).sum()), "iscrowd": crowd}  # fmt: skip


def found(*rows):
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    masks = torch.from_numpy(np.array([mask(*row[0]) for row in rows], bool).reshape(-1, *SIZE))
    scores, labels = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    return Detections(boxes, scores, labels.long(), masks)


def measured(*images):
    """Of pairs of detections and truths."""
    meter = DetectionMeter(["a", "b"])
    outputs, annotations = [one for one, _ in images], [rows for _, rows in images]
    batch = {
        "inputs": (None, (), tuple(SIZE for _ in images)),
        "annotations": annotations,
        "names": [str(i) for i in range(len(images))],
    }
    meter.update(meter.observe(outputs, batch))
    return meter.measurement()


A, B = (2, 2, 12, 12), (20, 20, 36, 36)


def test_all_found():
    scores = measured((found((A, 0.9, 0), (B, 0.8, 1)), [truth(A, 0), truth(B, 1)]))
    assert scores.figures == pytest.approx({"box_ap": 1, "box_ap50": 1, "mask_ap": 1, "mask_ap50": 1})
    assert [row.objects for row in scores.categories] == [1, 1]


def test_half_found():
    # One of two objects of a, none of b's one: at recall 0 to 0.5 precision 1 (51 of 101 points), and 0.
    scores = measured((found((A, 0.9, 0)), [truth(A, 0), truth(B, 0), truth(B, 1)]))
    assert scores.categories[0].box_ap == pytest.approx(51 / 101)
    assert scores.categories[1].box_ap == 0
    assert scores.figures["box_ap"] == pytest.approx(51 / 202)


def test_a_crowd_is_neither_to_be_found_nor_a_mistake():
    scores = measured((found((A, 0.9, 0), (B, 0.95, 0)), [truth(A, 0), truth(B, 0, crowd=1)]))
    assert scores.figures["box_ap50"] == pytest.approx(1)
    assert scores.categories[0].objects == 1
    assert scores.categories[1].box_ap is None


def test_nothing_found_and_nothing_to_find():
    assert measured((found(), [truth(A, 0)])).figures["box_ap"] == 0
    both = measured((found(), []), (found((A, 0.9, 0)), [truth(A, 0)]))
    assert (both.count, both.figures["mask_ap"]) == (2, pytest.approx(1))
    assert measured((found(), [])).figures["box_ap"] == 0


def test_as_torchmetrics_has_it():
    from torchmetrics.detection import MeanAveragePrecision

    random = np.random.RandomState(0)
    images, theirs = [], MeanAveragePrecision(iou_type=("bbox", "segm"), backend="pycocotools")

    def boxes(count):
        corner = random.randint(0, 20, (count, 2))
        return np.concatenate([corner, corner + random.randint(5, 20, (count, 2))], axis=1)

    for _ in range(6):
        real, labels = boxes(4), random.randint(0, 2, 4)
        guessed = np.clip(real + random.randint(-3, 4, real.shape), 0, 40)
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 1)
        rows = [(box.tolist(), float(random.rand()), int(label)) for box, label in zip(guessed, labels, strict=True)]
        output, truths = found(*rows), [truth(b.tolist(), int(k)) for b, k in zip(real, labels, strict=True)]
        images.append((output, truths))
        target = {
            "boxes": torch.tensor(real).float(),
            "labels": torch.tensor(labels),
            "masks": torch.from_numpy(np.array([mask(*box) for box in real])),
        }
        theirs.update([dict(vars(output))], [target])
    scores, want = measured(*images), theirs.compute()
    assert scores.figures["box_ap"] == pytest.approx(want["bbox_map"].item(), abs=1e-6)
    assert scores.figures["mask_ap"] == pytest.approx(want["segm_map"].item(), abs=1e-6)
    assert 0.05 < scores.figures["box_ap"] < 0.95
