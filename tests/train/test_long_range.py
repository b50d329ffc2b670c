"""Proof that the scan matters: a task that needs the whole image, learnt with the scan and not without it."""

import pytest
import torch
import torch.nn.functional as F

from vmamba import SS2D, create_model
from vmamba.data.datasets.marks import GAP, MARK, SIZE, make_marks

BATCH, MOST, HELD_OUT = 32, 16_384, 512


def tensors(count, seed):
    pixels, labels = make_marks(count, seed)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return (images / 255 - 0.5) / 0.25, torch.from_numpy(labels)


def learnt(images_to_see, **options):
    """Accuracy on held-out images of a nano model after at most so many training images; stops once it is certain."""
    torch.manual_seed(1)
    model = create_model("vmamba_nano", num_classes=2, drop_path_rate=0.0, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images, labels = tensors(images_to_see, seed=51)
    held_out, truth = tensors(HELD_OUT, seed=99)
    accuracy = 0.0
    for step, first in enumerate(range(0, images_to_see, BATCH)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20)
        loss = F.cross_entropy(model(images[first : first + BATCH]), labels[first : first + BATCH])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step % 32 == 31:
            model.eval()
            with torch.inference_mode():
                accuracy = (model(held_out).argmax(1) == truth).float().mean().item()
            model.train()
            if accuracy >= 0.98:
                break
    return accuracy


def test_marks_are_balanced_and_far_apart():
    pixels, labels = make_marks(400, seed=0)
    assert pixels.shape == (400, *SIZE, 3)
    assert labels.sum() == 200
    coloured = (pixels.max(-1).astype(int) - pixels.min(-1)) > 50
    columns = coloured.any(1)
    for row in columns:
        where = row.nonzero()[0]
        assert len(where) == 2 * MARK
        assert (where[1:] - where[:-1]).max() > GAP


def without(_, x):
    """What stands for the scan in the ablated model: nothing comes out of it."""
    return torch.zeros(x.shape, dtype=x.dtype)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "no scan"])
def test_no_place_sees_both_marks_but_through_the_scan(scan, monkeypatch):
    """Changing either mark's half moves one same last-stage token if and only if there is a scan."""
    if not scan:
        monkeypatch.setattr(SS2D, "scan", without)
    torch.manual_seed(0)
    model = create_model("vmamba_nano", num_classes=2).double().eval()
    image = torch.from_numpy(make_marks(1, 0)[0]).permute(0, 3, 1, 2).double() / 255
    edge = (SIZE[1] - GAP) // 2
    left, right = image.clone(), image.clone()
    left[..., :edge] = torch.rand(1, 3, SIZE[0], edge, dtype=torch.float64)
    right[..., SIZE[1] - edge :] = torch.rand(1, 3, SIZE[0], edge, dtype=torch.float64)
    with torch.inference_mode():
        before = model.forward_features(image)
        moved = [(model.forward_features(x) != before).any(-1) for x in (left, right)]
    assert moved[0].any()
    assert moved[1].any()
    assert bool((moved[0] & moved[1]).any()) == scan


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"forward_type": "m0_noz", "ssm_d_state": 16, "ssm_dt_rank": 8, "ssm_init": "v2"}],
    ids=["Mamba", "Mamba-2"],
)
def test_a_nano_model_learns_it(options):
    assert learnt(MOST, **options) >= 0.95


@pytest.mark.endless
def test_without_the_scan_it_stays_at_chance(monkeypatch):
    """The same model and training, with the scan's output zeroed: the two marks never meet."""
    monkeypatch.setattr(SS2D, "scan", without)
    assert 0.4 <= learnt(6_144) <= 0.6
