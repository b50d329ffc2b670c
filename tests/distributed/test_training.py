"""Two processes on gloo train as one does; when one is killed the other says so, and the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed.launch import context, together
from distributed.programs import command, elastic_command

from vmamba.data import Augmentation, DataConfig
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.processes import is_lost_process
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig

PLAIN = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "none", 0.0)


def settings(images: Path, run: Path, epochs: int) -> TrainConfig:
    """24 images: with two processes of 3, or one of 6, 4 updates an epoch."""
    return TrainConfig(
        model_options={"dims": [8, 16], "depths": [1, 1]},
        data=DataConfig("folder", images, image_size=16, train_images=24),
        augmentation=PLAIN,
        drop_path_rate=0.0,
        epochs=epochs,
        batch_size=6,
        lr_per_1024=1.024,  # 6e-3 for 6 images
        ema_decay=0.9,
        num_workers=0,
        device="cpu",
        output=run,
    )


def words(images: Path, run: Path, epochs: int) -> list[str]:
    """The same as options, for each of two processes."""
    return [
        "train", "--model_options", "{dims: [8, 16], depths: [1, 1]}", "--data.dataset", "folder",
        "--data.data_dir", str(images), "--data.image_size", "16", "--data.train_images", "24",
        "--augmentation.crop_scale", "[1, 1]", "--augmentation.crop_ratio", "[1, 1]", "--augmentation.hflip", "0",
        "--augmentation.color_jitter", "0", "--drop_path_rate", "0", "--epochs", str(epochs), "--batch_size", "3",
        "--lr_per_1024", "1.024", "--ema_decay", "0.9", "--num_workers", "0", "--device", "cpu",
        "--process_timeout", "40", "--output", str(run),
    ]  # fmt: skip


@pytest.mark.long
def test_twenty_steps_of_two_processes_are_those_of_one(
    colour_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    ended = together(tmp_path, command, *words(colour_images, two.path, 5))
    assert [status for status, _ in ended] == [0, 0], ended
    monkeypatch.setattr("vmamba.train.course.save_figure", lambda *_: None)
    train(settings(colour_images, one.path, 5))
    assert one.read_config().lr == two.read_config().lr == pytest.approx(6e-3)  # of the images of an update
    a, b = one.read_state(), two.read_state()
    assert (a["processes"], b["processes"], a["engine"]["updates"], b["engine"]["updates"]) == (1, 2, 20, 20)
    for part in ("model", "ema"):
        assert a["engine"][part].keys() == b["engine"][part].keys()
        for name, value in a["engine"][part].items():
            torch.testing.assert_close(b["engine"][part][name], value, rtol=0.0, atol=1e-5, msg=f"{part} {name}")
    for mine, theirs in zip(a["rows"], b["rows"], strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


@pytest.mark.long
def test_a_killed_process_ends_the_run_and_it_goes_on(colour_images: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    die = {"DIE": "7"}  # of 4 batches an epoch: in the second
    survivor, killed = together(tmp_path, command, *words(colour_images, run.path, 3), env=die, timeout=60)
    assert (survivor.status, killed.status) == (2, -9), (survivor, killed)
    last = survivor.said.strip().splitlines()[-1]
    assert last.startswith("vmamba: error: process 0 of 2 lost another one, which was killed or did not answer")
    assert last.endswith(f"start all of them again with --resume {run.path}")
    assert len(run.read_state()["rows"]) == 1
    # Two processes go on with it, with the option that the message names.
    ended = together(tmp_path, command, "train", "--resume", str(run.path))
    assert [status for status, _ in ended] == [0, 0], ended
    state = run.read_state()
    assert (state["processes"], len(state["rows"]), state["engine"]["updates"]) == (2, 3, 12)
    assert "".join(said for _, said in ended).count("resumed after 1 of 3 epochs") == 1  # one of them speaks


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_and_loses_nothing(colour_images: Path, tmp_path: Path) -> None:
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    assert [end.status for end in together(tmp_path, command, *words(colour_images, whole.path, 3))] == [0, 0]
    ended = together(tmp_path, command, *words(colour_images, run.path, 3), env={"ASK": "6"}, timeout=60)
    assert [status for status, _ in ended] == [143, 143], ended
    stopped = run.read_state()
    assert (len(stopped["rows"]), stopped["engine"]["updates"]) == (1, 6)  # inside the second epoch of four
    ended = together(tmp_path, command, "train", "--resume", str(run.path))
    assert [status for status, _ in ended] == [0, 0], ended
    wanted, got = whole.read_state()["engine"], run.read_state()["engine"]
    assert got["updates"] == 12
    for part in ("model", "ema"):
        assert all(torch.equal(got[part][name], value) for name, value in wanted[part].items()), part


@pytest.mark.long
def test_torchrun_ends_a_run_whose_process_was_killed(colour_images: Path, tmp_path: Path) -> None:
    """By the function that torchrun itself calls, so that nothing is imported anew."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    context()
    run = RunFolder(tmp_path / "run")
    launch = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", run_id="test", max_restarts=0,
        start_method="forkserver", monitor_interval=0.1, local_addr="127.0.0.1",
    )  # fmt: skip
    with pytest.raises(ChildFailedError, match=r"Signal 9 \(SIGKILL\)"):
        elastic_launch(launch, elastic_command)("7", *words(colour_images, run.path, 3))
    assert len(run.read_state()["rows"]) == 1


def test_only_a_lost_process_is_taken_for_one() -> None:
    from torch.distributed import DistBackendError

    assert is_lost_process(DistBackendError("NCCL error: remote process exited or there was a network error"))
    assert is_lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_process(torch.OutOfMemoryError("CUDA out of memory"))
