"""200,000 files: the first step comes soon, a loader's process is as small as with 2,000. `make test-long` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.endless

#: Loads a tree, takes a training batch from each of two processes, and tells the time and the processes' memory.
SCRIPT = """
import json, sys, time
started = time.perf_counter()
from pathlib import Path
import torch
from vmamba.data import DataConfig
from vmamba.train.accelerator import accelerator_for
from vmamba.train.settings.config import TrainConfig
from vmamba.train.loop.trainer import Trainer

def resident(pid):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024

seen = {}
def watched(plain):
    def loss(model, batch):
        result = plain(model, batch)
        seen["steps"] = seen.get("steps", 0) + 1
        if seen["steps"] == 1:
            seen["seconds"], seen["cpu_seconds"] = time.perf_counter() - started, time.process_time()
        if seen["steps"] == 30:
            import multiprocessing
            seen["worker_mib"] = max(resident(process.pid) for process in multiprocessing.active_children())
            print(json.dumps({"images": len(subsets.train), **seen}), flush=True)
            raise KeyboardInterrupt
        return result
    return loss

config = TrainConfig(
    model_options={"dims": [8, 16], "depths": [1, 1]}, data=DataConfig("folder", Path(sys.argv[1]), image_size=16),
    epochs=1, batch_size=16, num_workers=2, device="cpu",
).resolved()
with accelerator_for(config) as accelerator:
    task, subsets = config.learnt.load(config.data, {})
    subsets.fingerprint()
    try:
        trainer = Trainer(config, task, subsets, accelerator)
        trainer.objective.loss = watched(trainer.objective.loss)
        trainer.train_epoch(0)
    except KeyboardInterrupt:
        pass
"""


def tree(root: Path, count: int) -> Path:
    """``count`` files in 100 classes: links to one image a class, which take no room."""
    root.mkdir()
    for label in range(100):
        place = root / f"class_{label:03d}"
        place.mkdir()
        image = place / f"picture_of_something_{0:06d}.png"
        Image.new("RGB", (8, 8), (200, 30, label)).save(image)
        for i in range(1, count // 100):
            os.link(image, place / f"picture_of_something_{i:06d}.png")
    return root


def measured(root: Path) -> dict[str, float]:
    out = subprocess.run([sys.executable, "-c", SCRIPT, str(root)], check=True, capture_output=True, text=True)
    values: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return values


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_files_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    few, many = measured(tree(tmp_path / "few", 2_000)), measured(tree(tmp_path / "many", 200_000))
    print(few, many)
    assert many["images"] == 100 * few["images"]
    assert many["seconds"] < 20
    assert many["worker_mib"] < 1.2 * few["worker_mib"]
