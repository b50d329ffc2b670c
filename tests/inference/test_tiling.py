"""Whole images, windows, scales: what is read band by band is what one gets by holding everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.errors import ConfigError
from vmamba.inference import tiling as module
from vmamba.inference.tiling import Tiling, View, scores_of, segment, starts


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of a few rows, so that images of a test have several."""
    monkeypatch.setattr(module, "BAND", 2000)


def network(stride: int = 4, classes: int = 5, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(8, classes, 1)
    ).eval()


def image(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def padded(pixels: Tensor, least: int) -> Tensor:
    return F.pad(pixels, (0, max(0, least - pixels.shape[2]), 0, max(0, least - pixels.shape[1])))


def weights(window: tuple[int, int], blend: str) -> Tensor:
    down, across = (((torch.arange(n) + 0.5) / n - 0.5).abs() for n in window)
    if blend == "mean":
        return torch.ones(window)
    if blend == "gaussian":
        return torch.exp(-32 * down**2)[:, None] * torch.exp(-32 * across**2)
    return (1 - down * 2 * window[0] / (window[0] + 1))[:, None] * (1 - across * 2 * window[1] / (window[1] + 1))


def by_hand(net: nn.Module, pixels: Tensor, tiling: Tiling) -> Tensor:
    """The sum of the windows' weighted scores over that of the weights, all held at once."""
    height, width = pixels.shape[1:]
    total, count, weight = (
        torch.zeros(5, height, width),
        torch.zeros(height, width),
        weights(tiling.window, tiling.blend),
    )
    (wh, ww), (sh, sw) = tiling.window, tiling.stride
    for y in range(max(height - wh + sh - 1, 0) // sh + 1):
        for x in range(max(width - ww + sw - 1, 0) // sw + 1):
            bottom, right = min(y * sh + wh, height), min(x * sw + ww, width)
            top, left = bottom - wh, right - ww
            scores = resize(net(pixels[None, :, top:bottom, left:right]), (wh, ww))[0]
            total[:, top:bottom, left:right] += scores * weight
            count[top:bottom, left:right] += weight
    return total / count


def all_rows(net: nn.Module, pixels: Tensor, tiling: Tiling, step: int = 7) -> Tensor:
    scores = scores_of(net, View(pixels), tiling)
    with torch.no_grad():
        parts = [scores.rows(i, min(i + step, scores.height)) for i in range(0, scores.height, step)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (33, 90)])
@torch.no_grad()
def test_a_whole_image(size: tuple[int, int]) -> None:
    net, pixels = network(), image(*size)
    want = resize(net(pixels[None]), size)[0]
    torch.testing.assert_close(all_rows(net, pixels, Tiling()), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(segment(net, [View(pixels)], size).long(), want.argmax(0))


@pytest.mark.parametrize("stride", [4, 1])
@pytest.mark.parametrize("size", [(64, 48), (40, 100), (32, 32), (75, 61)])
@torch.no_grad()
def test_windows_are_the_mean_of_what_covers_a_pixel(size: tuple[int, int], stride: int) -> None:
    net, pixels = network(stride), image(*size)
    tiling = Tiling("slide", (32, 32), (20, 24), batch=2)
    torch.testing.assert_close(all_rows(net, pixels, tiling), by_hand(net, pixels, tiling), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blend", ["mean", "triangular", "gaussian"])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.4, 1.0, 1.3), True)])
@torch.no_grad()
def test_scores_of_full_size_are_added_up_to_the_same(scales: tuple[float, ...], flip: bool, blend: Any) -> None:
    """A network of stride 1 keeps sums instead of windows: what holding all its scores at once gives."""
    net, pixels, size = network(1), image(75, 101), (75, 101)
    tiling = Tiling("slide", (32, 32), (21, 13), blend)
    views, whole = [], torch.zeros(5, *size)
    for scale in scales:
        scaled = resize(pixels[None], (int(75 * scale), int(101 * scale)))[0]
        for mirrored in (False, True)[: 1 + flip]:
            view = View(scaled.flip(-1) if mirrored else scaled, mirrored)
            views.append(view)
            want = by_hand(net, padded(view.pixels, 32), tiling)[:, : scaled.shape[1], : scaled.shape[2]]
            torch.testing.assert_close(all_rows(net, view.pixels, tiling), want, rtol=1e-6, atol=1e-6)
            whole += resize((want.flip(-1) if mirrored else want)[None], size).softmax(1)[0]
    assert (segment(net, views, size, tiling).long() != whole.argmax(0)).float().mean() < 1e-3


@torch.no_grad()
def test_windows_that_cover_exactly_are_the_whole_image() -> None:
    pointwise = nn.Conv2d(3, 5, 1)
    pixels = image(96, 64)
    for stride in ((32, 32), (16, 8)):
        got = all_rows(pointwise, pixels, Tiling("slide", (32, 32), stride))
        torch.testing.assert_close(got, pointwise(pixels), rtol=1e-5, atol=1e-5)
    net = network()
    one = all_rows(net, pixels, Tiling("slide", (96, 64), (96, 64)))
    torch.testing.assert_close(one, all_rows(net, pixels, Tiling()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blend", ["triangular", "gaussian"])
@torch.no_grad()
def test_blended_windows(blend: str) -> None:
    pointwise, pixels = nn.Conv2d(3, 5, 1), image(50, 70)
    got = all_rows(pointwise, pixels, Tiling("slide", (32, 32), (11, 13), blend))  # type: ignore[arg-type]
    torch.testing.assert_close(got, pointwise(pixels), rtol=1e-4, atol=1e-5)
    # Of two windows that disagree, the nearer counts more.
    net = network()
    plain = Tiling("slide", (32, 32), (16, 16))
    pixels = pixels[:, :32, :48]
    mean = all_rows(net, pixels, plain)
    blended = all_rows(net, pixels, Tiling("slide", (32, 32), (16, 16), blend))  # type: ignore[arg-type]
    left = resize(net(pixels[None, :, :, :32]), (32, 32))[0]
    assert (blended[..., :32] - left)[:, :, 16:20].abs().mean() < (mean[..., :32] - left)[:, :, 16:20].abs().mean()


@torch.no_grad()
def test_an_image_smaller_than_a_window_is_filled_up() -> None:
    net, pixels = network(), image(20, 45)
    want = resize(net(F.pad(pixels, (0, 0, 0, 12))[None]), (32, 45))[0, :, :20]
    torch.testing.assert_close(all_rows(net, pixels, Tiling()), want, rtol=1e-5, atol=1e-5)
    wide = resize(net(F.pad(pixels, (0, 19, 0, 44))[None]), (64, 64))[0, :, :20, :45]
    got = all_rows(net, pixels, Tiling("slide", (64, 64), (40, 40)))
    torch.testing.assert_close(got, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiling", [Tiling(), Tiling("slide", (32, 32), (20, 20))])
@torch.no_grad()
def test_another_size_takes_two_steps(tiling: Tiling) -> None:
    net, pixels = network(), image(48, 64)
    want = resize(all_rows(net, pixels, tiling)[None], (90, 130))[0].argmax(0)
    assert (segment(net, [View(pixels)], (90, 130), tiling).long() != want).float().mean() < 1e-3
    down = resize(all_rows(net, pixels, tiling)[None], (31, 20))[0].argmax(0)
    assert (segment(net, [View(pixels)], (31, 20), tiling).long() != down).float().mean() < 2e-3


@torch.no_grad()
def test_scales_and_mirror_are_the_mean_of_probabilities() -> None:
    net, pixels = network(), image(40, 56)
    views, total = [], torch.zeros(5, 40, 56)
    for scale in (0.9, 1.0, 1.5):
        size = (int(40 * scale + 0.5), int(56 * scale + 0.5))
        scaled = resize(pixels[None], size)[0]
        for mirrored in (False, True):
            shown = scaled.flip(-1) if mirrored else scaled
            views.append(View(shown, mirrored))
            scores = resize(net(shown[None]), size)
            total += resize(scores.flip(-1) if mirrored else scores, (40, 56)).softmax(1)[0]
    got = segment(net, views, (40, 56)).long()
    assert (got != total.argmax(0)).float().mean() < 1e-3


def test_windows_stay_inside_and_leave_no_gap() -> None:
    assert starts(512, 512, 341) == [0]
    assert starts(600, 512, 341) == [0, 88]
    assert starts(853, 512, 341) == [0, 341]
    assert starts(854, 512, 341) == [0, 341, 342]


@pytest.mark.parametrize("stride", [4, 1])
def test_only_what_is_needed_is_kept(stride: int) -> None:
    calls = []

    def net(pixels: Tensor) -> Tensor:
        calls.append(pixels.shape)
        return pixels[:, :2, ::stride, ::stride]

    scores = scores_of(net, View(image(320, 40)), Tiling("slide", (32, 32), (16, 16)))
    for top in range(0, 320, 8):
        scores.rows(top, top + 8)
        values = sum(kept.numel() for kept in (*scores._maps.values(), *scores._bands.values()))  # type: ignore[attr-defined]
        # Two rows of two windows; or the rows of one window and two bands.
        assert values <= (2 * 2 * 8 * 8 * 2 if stride == 4 else 2 * 40 * (32 + 2 * 25))
    assert len(calls) == 19 * 2
    with pytest.raises(AssertionError, match="rows from 312 on are kept"):
        scores.rows(0, 8)


def test_many_classes() -> None:
    labels = segment(
        lambda pixels: torch.eye(300)[:, :, None].expand(1, 300, 300, 40)[:, :, :40], [View(image(40, 40))], (40, 40)
    )
    assert labels.dtype == torch.int32
    assert labels.max() == 39


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "tiles"}, "want whole or slide"),
        ({"blend": "linear"}, "want mean, triangular or gaussian"),
        ({"stride": (600, 300)}, r"no more than window=\(512, 512\)"),
        ({"window": (0, 4)}, "1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Tiling(**values)
