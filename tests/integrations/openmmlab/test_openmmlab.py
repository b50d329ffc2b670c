"""`MM_VSSM` in real mmsegmentation and mmdetection, which `make witnesses` installs into a folder of their own.

Upstream's configurations build the networks that the parity data describes, give its outputs, and train on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "witnesses" / "openmmlab"
SCRIPTS = Path(__file__).parent / "witnesses"
CONFIGURATIONS = json.loads((Path(__file__).parent / "configurations.json").read_text())
TASKS = sorted(CONFIGURATIONS)
#: float32 sums in another order, over the stored tensor's scale.
CLOSE = 1e-4

installed = pytest.mark.skipif(not FOLDER.exists(), reason="no OpenMMLab here: `make witnesses` installs it")


@functools.cache
def run(script: str, *words: str) -> dict[str, Any]:
    """What a program prints that sees OpenMMLab's packages."""
    path = os.pathsep.join([str(FOLDER), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def networks() -> dict[str, Any]:
    changes = {task: {name: one["changes"] for name, one in models.items()} for task, models in CONFIGURATIONS.items()}
    return run("both.py", json.dumps(changes))


@installed
@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_every_official_configuration_has_upstreams_keys_in_order(task: str) -> None:
    assert networks()[task]["full"] == {name: one["keys"] for name, one in CONFIGURATIONS[task].items()}


@installed
@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_stored_outputs(task: str) -> None:
    cases = networks()[task]["cases"]
    assert len(cases) == 2
    for case in cases.values():
        assert case["keys"]
        assert len(case["tensors"]) == {"segmentation": 8, "detection": 18}[task]
        assert {name: apart for name, apart in case["tensors"].items() if not apart <= CLOSE} == {}


@installed
@pytest.mark.long
def test_segmentation_answers() -> None:
    for case in networks()["segmentation"]["cases"].values():
        assert max(case["losses"].values()) <= 1e-5
        assert case["other classes"] == 0


@installed
@pytest.mark.long
def test_detection_answers() -> None:
    for case in networks()["detection"]["cases"].values():
        assert case["boxes"] <= CLOSE
        assert case["scores"] <= CLOSE
        assert case["labels"]
        assert case["mask pixels"] <= 12  # of 100 masks' 1.2 million: those at the threshold


@installed
@pytest.mark.long
def test_segmentation_trains_under_mmengines_runner() -> None:
    said = networks()["segmentation"]["trained"]
    assert said["losses"][-1] < 0.9 * said["losses"][0]
    assert said["without gradient"] == []  # so that find_unused_parameters may be false
    assert said["unmoved"] == []
    assert said["norms"]
    assert not any("Sync" in name for name in said["norms"])  # the runner's doing where training is not distributed
    assert said["no decay"] == said["no decay by name"] > 0
    assert said["checkpoint"] == ["message_hub", "meta", "optimizer", "param_schedulers", "state_dict"]


@installed
@pytest.mark.long
def test_detection_gives_every_parameter_a_gradient() -> None:
    said = networks()["detection"]["trained"]
    assert set(said["losses"]) >= {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert said["without gradient"] == []


@installed
@pytest.mark.long
def test_registration() -> None:
    said = run("registration.py")
    for circumstance in ("no mmengine", "neither", "another mmcv"):
        kind, message = said[circumstance]
        assert kind in ("ImportError", "ModuleNotFoundError"), circumstance
        assert "pip install mmengine" in message
    assert "MMCV==2.2.0 is used but incompatible" in said["another mmcv"][1]
    assert said["mmseg alone"] == ["mmsegmentation"]
    assert said["both"] == ["mmsegmentation", "mmdet"]
    assert said["there"] == [True, True]
    assert said["again"] == ["nothing", ""]
    kind, message = said["upstream's too"]
    assert kind == "ConfigError"
    assert "module 'model'" in message


@installed
@pytest.mark.long
def test_what_the_class_takes() -> None:
    said = run("registration.py")
    assert said["inherited"] == [None, None, True]
    assert said["with_cp"] is True
    assert "did you mean 'ssm_d_state'" in said["misspelt"][1]
    assert "_delete_=True" in said["name beside Swin's"][1]
    assert said["name"] == 0.3
    assert "name=" in said["released without name"][1]
    assert said["released"][0].endswith("vssm1_tiny_0230s_ckpt_epoch_264.pth")


@installed
@pytest.mark.long
def test_where_training_starts() -> None:
    said = run("registration.py")
    kind, message = said["missing"]
    assert kind == "CheckpointError"
    assert "pretrained=None" in message
    assert said["at once"] is said["initialised"] is said["init_cfg"] is said["constant"] is True
    assert "give one of them" in said["two starts"][1]
    assert said["another size"][0] == "CheckpointError"


def test_without_openmmlab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmengine", None)
    monkeypatch.setitem(sys.modules, "mmengine.model", None)
    with pytest.raises(ImportError, match="needs mmengine, and mmsegmentation or mmdet"):
        importlib.import_module("vmamba.integrations.openmmlab")
