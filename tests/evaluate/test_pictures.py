"""Pictures: what is drawn, not how it looks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmamba.errors import OutputError
from vmamba.evaluate.pictures import save_figure
from vmamba.tasks.classification.confusion import MAX_COUNTED, MAX_NAMED, confusion_figure
from vmamba.tasks.classification.task import Classification
from vmamba.train.reports import curves
from vmamba.train.reports.rows import EpochRow


def rows(count: int) -> list[EpochRow]:
    return [
        EpochRow(
            e,
            {"loss": 2 / e, "accuracy": 1 - 1 / (e + 1)},
            {"loss": 1.5 / e, "accuracy": 1 - 0.5 / e},
            1e-3 / e,
            1.0,
            100.0,
        )
        for e in range(1, count + 1)
    ]


curves_figure = functools.partial(curves.curves_figure, task=Classification)


def test_curves_show_every_epoch_and_mark_the_best(tmp_path: Path) -> None:
    figure = curves_figure(rows(9), best_epoch=7, title="run")
    loss, accuracy, rate = figure.axes
    train, val = loss.lines[:2]
    assert np.asarray(train.get_xdata()).tolist() == list(range(1, 10))
    assert np.asarray(val.get_ydata()).tolist() == [row.val["loss"] for row in rows(9)]
    assert np.asarray(rate.lines[0].get_ydata()).tolist() == [row.lr for row in rows(9)]
    legend = accuracy.get_legend()
    assert legend is not None
    assert "best: epoch 7, 92.86%" in [text.get_text() for text in legend.get_texts()]
    save_figure(figure, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1320, 432)


def test_curves_of_one_epoch_have_points() -> None:
    loss = curves_figure(rows(1), best_epoch=1).axes[0]
    assert loss.lines[0].get_marker() == "o"


@pytest.mark.parametrize("k", [MAX_COUNTED, MAX_COUNTED + 1, MAX_NAMED + 1])
def test_confusion_counts_and_names(k: int, tmp_path: Path) -> None:
    counts = np.eye(k, dtype=int) * 7
    counts[0, 1] = 3
    figure = confusion_figure(counts.tolist(), [f"class {i}" for i in range(k)], "Test")
    axes = figure.axes[0]
    written = sorted(text.get_text() for text in axes.texts)
    assert written == (sorted(["7"] * k + ["3"]) if k <= MAX_COUNTED else [])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (labels == [f"class {i}" for i in range(k)]) == (k <= MAX_NAMED)
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[0, :2], [0.7, 0.3])
    assert f"{7 * k} of {7 * k + 3} right" in axes.get_title()
    save_figure(figure, tmp_path / "confusion.png")


def test_confusion_refuses_another_shape_and_takes_empty_rows() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\), want \(3, 3\)"):
        confusion_figure([[1, 0], [0, 1]], ["a", "b", "c"])
    assert "no images" in confusion_figure([[0, 0], [0, 0]], ["a", "b"]).axes[0].get_title()


def test_same_figure_same_bytes_and_nothing_half_written(tmp_path: Path) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    save_figure(curves_figure(rows(3)), first)
    save_figure(curves_figure(rows(3)), second)
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_figure(curves_figure(rows(3)), tmp_path / "file" / "curves.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "2.png", "file"]
