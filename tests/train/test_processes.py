"""Several processes that train together: one downloads, verifies and decides; a mistake of its ends all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vmamba.train.run_folder import RunFolder

#: Trains two epochs, with all that is to happen once said aloud.
SCRIPT = """
import os, sys
from pathlib import Path
import vmamba.train.finetune as finetune
from vmamba.data import DataConfig
from vmamba.data.datasets import folder
from vmamba.errors import VMambaError
from vmamba.train.config import TrainConfig
from vmamba.train.run import train

def loud(name, plain):
    def call(*values):
        print("did", name, "in", os.environ["RANK"], flush=True)
        return plain(*values)
    return call

reading = (folder, "load"), (folder, "find_faults"), (folder.FileImages, "fingerprint")
for place, name in (*reading, (finetune, "init_file")):
    setattr(place, name, loud(name, getattr(place, name)))
import vmamba.train.loop as loop
loop.init_file = finetune.init_file
images, run, init = sys.argv[1:]
try:
    train(TrainConfig(
        model_options={"dims": [8, 16], "depths": [1, 1]}, data=DataConfig("folder", Path(images), image_size=16),
        epochs=1, batch_size=5, grad_accumulation=2, num_workers=0, device="cpu", output=Path(run), init=init or None,
    ))
except VMambaError as error:
    print("refused in", os.environ["RANK"], type(error).__name__, error, flush=True)
"""


def together(*words: str) -> list[str]:
    """What two processes print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    return "".join(said).splitlines()


@pytest.mark.long
def test_one_process_reads_the_data_and_the_others_wait(colour_images: Path, colour_run: Path, tmp_path: Path) -> None:
    said = together(str(colour_images), str(tmp_path / "run"), str(colour_run))
    assert [line for line in said if "refused" in line] == []
    done = [line for line in said if line.startswith("did")]
    assert sorted(line for line in done if not line.startswith("did init_file")) == [
        "did find_faults in 0", *["did fingerprint in 0"] * 3, "did load in 0",
    ]  # fmt: skip
    assert done.count("did init_file in 0") == 2  # once to find the file, once as the path that it is
    state = RunFolder(tmp_path / "run").read_state()
    assert (state["processes"], len(state["rows"])) == (2, 1)
    assert state["engine"]["updates"] == 2  # 27 images: 5+5 and, for either process, 4 of what is left


@pytest.mark.long
def test_a_mistake_that_one_process_finds_ends_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = together(str(tmp_path / "empty"), str(tmp_path / "run"), "")
    for rank in (0, 1):
        assert any(line.startswith(f"refused in {rank} DataError no class folders") for line in said), said
    assert not (tmp_path / "run").exists()
