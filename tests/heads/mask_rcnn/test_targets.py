"""Targets and losses on cases small enough to compute by hand; the numbers are written out."""

import math

import pytest
import torch

from vmamba.architecture.detectors import BoxHeadConfig, RPNConfig
from vmamba.heads.mask_rcnn.boxes import box_iou, decode, encode, suppress
from vmamba.heads.mask_rcnn.losses import (
    Regions,
    Truth,
    box_losses,
    mask_loss,
    mask_targets,
    rpn_losses,
    sample_regions,
)
from vmamba.heads.mask_rcnn.matching import assign, sample
from vmamba.heads.mask_rcnn.rpn import RPNHead

LN2 = math.log(2)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def truth(rows, labels, size=(20, 20)):
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, rows, strict=True):
        mask[y1:y2, x1:x2] = True
    return Truth(boxes(*rows), torch.tensor(labels, dtype=torch.int64), masks)


def test_iou():
    # 10×10 and the same moved by half its width: 50 shared of 150. Nothing shared. Two boxes without area.
    a = boxes((0, 0, 10, 10), (20, 20, 30, 30), (1, 1, 1, 5))
    b = boxes((5, 0, 15, 10), (0, 0, 10, 10), (1, 1, 1, 5))
    expected = [[1 / 3, 1, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(box_iou(a, b), torch.tensor(expected))


def test_coding_is_inverted():
    # Centre (5, 5) to (8, 3): +3/10 and -2/10. Size 10×10 to 20×5: ln 2 and -ln 2. All over the stds.
    start, end = boxes((0, 0, 10, 10)), boxes((-2, 0.5, 18, 5.5))
    stds = (0.1, 0.1, 0.2, 0.2)
    deltas = encode(start, end, stds)
    torch.testing.assert_close(deltas, torch.tensor([[3.0, -2.0, LN2 / 0.2, -LN2 / 0.2]]))
    torch.testing.assert_close(decode(start, deltas, stds), end)
    torch.testing.assert_close(decode(start, deltas, stds, image_size=(4, 10)), boxes((0, 0.5, 10, 4)))


@pytest.mark.parametrize(("delta", "size"), [(100.0, 10 * 1000 / 16), (-100.0, 10 * 16 / 1000)])
def test_a_change_of_size_is_limited_on_both_sides(delta, size):
    moved = decode(boxes((0, 0, 10, 10)), torch.tensor([[0, 0, delta, delta]]))[0]
    assert (moved[2] - moved[0]).item() == pytest.approx(size, rel=1e-5)


def test_suppression_keeps_other_groups_and_what_is_at_the_threshold():
    # IoU of the first two: 1/3, not above 1/3. The third is the first again, the fourth too but of another group.
    all_boxes = boxes((0, 0, 10, 10), (5, 0, 15, 10), (0, 0, 10, 10), (0, 0, 10, 10))
    scores, groups = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1])
    third = float(torch.tensor(1 / 3))
    assert suppress(all_boxes, scores, groups, third).tolist() == [0, 1, 3]
    assert suppress(all_boxes, scores, groups, 0.3).tolist() == [0, 3]
    assert suppress(boxes(), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []


def test_suppression_group_by_group_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=generator) * 80
    many = torch.cat([corner, corner + 5 + torch.rand(400, 2, generator=generator) * 20], dim=1)
    scores, groups = torch.rand(400, generator=generator), torch.randint(0, 6, (400,), generator=generator)
    at_once = suppress(many, scores, groups, 0.4)
    monkeypatch.setattr("vmamba.heads.mask_rcnn.boxes.MOST_SHIFTED", 10)
    assert suppress(many, scores, groups, 0.4).tolist() == at_once.tolist()
    assert 6 < len(at_once) < 400


# --- assignment. True boxes: A = 10×10 at the origin, B = 10×10 at (100, 100).
A, B = (0, 0, 10, 10), (100, 100, 110, 110)


def test_assignment_by_thresholds():
    anchors = boxes(
        (0, 0, 10, 8),  # 80 of 100 shared: 0.8 >= 0.7, belongs to A
        (0, 0, 10, 5),  # 0.5: between 0.3 and 0.7, ignored
        (0, 0, 10, 2),  # 0.2: background
        (100, 100, 110, 110),  # B itself
    )
    assert assign(anchors, boxes(A, B), 0.7, 0.3, 0.3).tolist() == [1, -1, 0, 2]


def test_each_true_box_takes_its_best_anchors():
    anchors = boxes(
        (0, 0, 10, 4),  # 0.4 with A, its best
        (0, 6, 10, 10),  # 0.4 with A too: taken as well
        (0, 0, 10, 3.5),  # 0.35: ignored
        (100, 100, 110, 102),  # 0.2 with B, its best, but below 0.3: background
    )
    assert assign(anchors, boxes(A, B), 0.7, 0.3, 0.3).tolist() == [1, 1, -1, 0]


def test_the_later_true_box_overrides():
    # The anchor is 0.9 of the first true box; the second's best, at 0.45, is this anchor too.
    anchors, true_boxes = boxes((0, 0, 10, 9)), boxes(A, (0, 0, 10, 20))
    assert box_iou(anchors, true_boxes).tolist() == [pytest.approx([0.9, 0.45])]
    assert assign(anchors, true_boxes, 0.7, 0.3, 0.3).tolist() == [2]
    assert assign(anchors, true_boxes, 0.5, 0.5, 0.5).tolist() == [1]  # as for regions: 0.45 takes nothing


def test_without_true_boxes_all_is_background():
    assert assign(boxes(A, B), boxes(), 0.7, 0.3, 0.3).tolist() == [0, 0]


def test_sampling_is_balanced_and_reproducible():
    assigned = torch.tensor([1] * 10 + [0] * 30 + [-1] * 20)
    positive, negative = sample(assigned, 16, 0.25, torch.Generator().manual_seed(3))
    assert len(positive) == 4
    assert len(negative) == 12
    assert (assigned[positive] > 0).all()
    assert (assigned[negative] == 0).all()
    again = sample(assigned, 16, 0.25, torch.Generator().manual_seed(3))
    assert (again[0].tolist(), again[1].tolist()) == (positive.tolist(), negative.tolist())
    other = sample(assigned, 16, 0.25, torch.Generator().manual_seed(4))
    assert (other[0].tolist(), other[1].tolist()) != (positive.tolist(), negative.tolist())
    # Too few positive ones: background fills up.
    assert [len(part) for part in sample(torch.tensor([1, 0, 0, 0, 0]), 4, 0.5)] == [1, 3]


# --- the region proposal network


def one_level_head():
    """Stride 8, one anchor of 8×8 a place: anchors centred at 0 and 8 in both directions on a map of 2×2."""
    head = RPNHead(RPNConfig(in_channels=1, feat_channels=1, scales=(1.0,), ratios=(1.0,), strides=(8,)))
    anchors = head.anchors([torch.zeros(1, 1, 2, 2)])
    assert anchors[0].tolist() == [[-4, -4, 4, 4], [4, -4, 12, 4], [-4, 4, 4, 12], [4, 4, 12, 12]]
    return head, anchors


def test_rpn_losses():
    head, anchors = one_level_head()
    # The true box is the last anchor moved by 1 to the right: IoU 7/9 = 0.78, positive. The others share at most
    # 0 pixels: background. Scores 0 everywhere: cross entropy ln 2 for each of 4 anchors, over 4.
    # Its delta is 1/8 in x. Predicted: 0.5 in y and nothing else: L1 = 1/8 + 1/2, over 4 anchors.
    scores, deltas = [torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 4, 2, 2)]
    deltas[0][0, 1] = 0.5
    own = truth([(5, 4, 13, 12)], [0])
    entropy, l1 = rpn_losses(head, scores, deltas, anchors, [own], [(32, 32)])
    assert entropy.item() == pytest.approx(LN2)
    assert l1.item() == pytest.approx(0.625 / 4)
    # A score of ln 3 for the positive anchor alone: probability 3/4, -ln 3/4 instead of ln 2.
    scores[0][0, 0, 1, 1] = math.log(3)
    entropy, _ = rpn_losses(head, scores, deltas, anchors, [own], [(32, 32)])
    assert entropy.item() == pytest.approx((3 * LN2 - math.log(0.75)) / 4)


def test_rpn_losses_divide_by_the_anchors_of_the_whole_batch():
    # The second image has no object: 4 background anchors. 8 · ln 2 over 8; the L1 of the first over 8.
    head, anchors = one_level_head()
    scores, deltas = [torch.zeros(2, 1, 2, 2)], [torch.zeros(2, 4, 2, 2)]
    truths = [truth([(5, 4, 13, 12)], [0]), truth([], [])]
    entropy, l1 = rpn_losses(head, scores, deltas, anchors, truths, [(32, 32)] * 2)
    assert entropy.item() == pytest.approx(LN2)
    assert l1.item() == pytest.approx(0.125 / 8)


def test_anchors_beyond_an_images_own_padding_are_not_drawn():
    # The map is 2×2 places of 8 pixels; the image's own padded size holds the left column only.
    head, anchors = one_level_head()
    scores = [torch.zeros(1, 1, 2, 2)]
    scores[0][..., 1] = 50.0  # would cost 50 each as background
    entropy, _ = rpn_losses(head, scores, [torch.zeros(1, 4, 2, 2)], anchors, [truth([], [])], [(16, 8)])
    assert entropy.item() == pytest.approx(LN2)


# --- regions


def test_regions_are_drawn_from_proposals_and_true_boxes():
    # Proposals: 0.8 of the true box, 0.45 of it, and far away. All fit: the true box itself comes first.
    config = BoxHeadConfig(num_classes=3, samples=8, positive_fraction=0.5)
    own = truth([(0, 0, 10, 10)], [2])
    proposals = boxes((0, 0, 10, 8), (0, 0, 10, 4.5), (12, 12, 20, 20))
    regions = sample_regions(proposals, own, config)
    assert regions.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4.5], [12, 12, 20, 20]]
    assert regions.labels.tolist() == [2, 2, 3, 3]  # 3 is the background
    assert regions.truth.tolist() == [0, 0]
    assert sample_regions(proposals, truth([], []), config).labels.tolist() == [3, 3, 3]


def test_box_losses():
    # Two classes. Regions: one positive of class 1 that is its true box moved by -1 in x, one of background.
    # Logits 0: cross entropy ln 3 each, mean ln 3. The delta wanted is 1/10 over the std 0.1 = 1 in x;
    # predicted 3 for class 1 (and 100 for class 0, which does not matter): L1 = 2, over two regions.
    config = BoxHeadConfig(num_classes=2)
    own = truth([(1, 0, 11, 10)], [1])
    regions = Regions(boxes((0, 0, 10, 10), (12, 12, 20, 20)), torch.tensor([1, 2]), torch.tensor([0]))
    deltas = torch.zeros(2, 8)
    deltas[0, 0], deltas[0, 4], deltas[1] = 100, 3, 100
    entropy, l1 = box_losses(torch.zeros(2, 3), deltas, [regions], [own], config)
    assert entropy.item() == pytest.approx(math.log(3))
    assert l1.item() == pytest.approx(1.0)


def test_mask_targets():
    # The mask is the left half of a 8×8 image. Boxes: the image; its right half; columns 2 to 6, which the border
    # halves; and one that reaches beyond the image, which is cut at its border.
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    cut = mask_targets(masks, boxes((0, 0, 8, 8), (4, 0, 8, 8), (2, 2, 6, 6), (-8, 0, 8, 8)), torch.zeros(4).long(), 4)
    assert cut[0].tolist() == [[1, 1, 0, 0]] * 4
    assert cut[1].tolist() == [[0, 0, 0, 0]] * 4
    assert cut[2].tolist() == [[1, 1, 0, 0]] * 4
    assert cut[3].tolist() == cut[0].tolist()


def test_mask_loss():
    # Of two classes' maps only the label's counts. Target: left half 1, right half 0; logits ln 3: the probability is
    # 3/4 everywhere, so -ln 3/4 on the left and -ln 1/4 on the right.
    own = truth([(0, 0, 4, 8)], [1], (8, 8))
    regions = Regions(boxes((0, 0, 8, 8), (0, 0, 2, 2)), torch.tensor([1, 2]), torch.tensor([0]))
    logits = torch.full((1, 2, 4, 4), 30.0)
    logits[:, 1] = math.log(3)
    loss = mask_loss(logits, [regions], [own])
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_no_positive_region_is_a_loss_of_zero_with_gradients():
    weight = torch.ones(2, 3, 1, 1, requires_grad=True)
    loss = mask_loss(torch.nn.functional.conv2d(torch.zeros(0, 3, 4, 4), weight), [], [])
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.abs().sum() == 0
