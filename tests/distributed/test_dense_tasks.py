"""Segmentation and detection over two processes: the same learning as in one, and a killed process loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coco_files import SMALL, content, write
from distributed.launch import together
from distributed.programs import command
from mask_files import red_images

from vmamba.cli import main
from vmamba.train.folder.run_folder import RunFolder

BACKBONE = {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}


def segmentation(images: Path, run: Path, batch: int) -> tuple[str, ...]:
    """Of a model without batch norms, whose statistics are a process's own on CPUs; nothing is drawn but the order."""
    return (
        "train", "--task", "segmentation", "--model", "fpn_vmamba_nano",
        "--model_options", json.dumps({**BACKBONE, "auxiliary_head": False, "decode_head": {"dropout_ratio": 0}}),
        "--data.dataset", "masks", "--data.data_dir", str(images), "--data.image_size", "64",
        "--data.train_images", "8", "--task_options", "{scale: [1, 1], max_class_share: 1}",
        "--augmentation.hflip", "0", "--augmentation.color_jitter", "0", "--drop_path_rate", "0", "--lr", "3e-4",
        "--batch_size", str(batch), *common(run),
    )  # fmt: skip


def detection(images: Path, run: Path) -> tuple[str, ...]:
    return (
        "train", "--task", "detection", "--model", "mask_rcnn_vmamba_nano", "--model_options", json.dumps(SMALL),
        "--data.dataset", "coco", "--data.data_dir", str(images), "--task_options", "{resize: [64, 64]}",
        "--lr", "1e-3", "--batch_size", "1", *common(run),
    )  # fmt: skip


def common(run: Path) -> tuple[str, ...]:
    return (
        "--epochs", "2", "--epoch_updates", "4", "--warmup_epochs", "0", "--ema_decay", "0.9", "--num_workers", "0",
        "--device", "cpu", "--process_timeout", "40", "--output", str(run),
    )  # fmt: skip


def ended_well(run: Path, updates: int) -> dict[str, object]:
    state = RunFolder(run).read_state()
    assert (state["processes"], len(state["rows"]), state["engine"]["updates"]) == (2, 2, updates)
    assert all(bool(value.isfinite().all()) for value in state["engine"]["model"].values() if value.is_floating_point())
    return state


@pytest.mark.long
def test_a_segmenter_learns_the_same_from_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = red_images(tmp_path / "red", 16, 64, wider=0)
    ended = together(tmp_path, command, *segmentation(images, tmp_path / "two", 2))
    assert [status for status, _ in ended] == [0, 0], ended
    two = ended_well(tmp_path / "two", 8)
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)
    assert main(segmentation(images, tmp_path / "one", 4)) == 0
    one = RunFolder(tmp_path / "one").read_state()
    for part in ("model", "ema"):
        for name, value in one["engine"][part].items():
            torch.testing.assert_close(two["engine"][part][name], value, rtol=0.0, atol=1e-5, msg=f"{part} {name}")
    for mine, theirs in zip(one["rows"], two["rows"], strict=True):
        for name in ("train_loss", "train_aacc", "val_miou", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


@pytest.mark.long
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_killed_process_ends_the_run_and_it_goes_on(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if task == "segmentation":
        words = segmentation(red_images(tmp_path / "red", 16, 64, wider=0), run, 2)
    else:
        words = detection(write(tmp_path / "coco", content(12)), run)
    survivor, killed = together(tmp_path, command, *words, env={"DIE": "6"}, timeout=60)
    assert (survivor.status, killed.status) == (2, -9), (survivor, killed)
    assert survivor.said.strip().splitlines()[-1].endswith(f"start all of them again with --resume {run}")
    assert len(RunFolder(run).read_state()["rows"]) == 1
    ended = together(tmp_path, command, "train", "--resume", str(run))
    assert [status for status, _ in ended] == [0, 0], ended
    ended_well(run, 8)
