"""Real packages that are written against mamba-ssm's kernels run here unchanged, and give what plain loops give.

`make witnesses` installs them into a folder of its own. Each runs in a process of its own, with that folder in sight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "witnesses"
SCRIPTS = Path(__file__).parent / "witnesses"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (FOLDER / "pins").exists(), reason="no client packages here: `make witnesses` installs them"
    ),
]

#: Float32 sums in another order; both sides start from the same weights.
CLOSE = 1e-5

WITHIN = """
import runpy, sys, vmamba
from vmamba.integrations.mamba_ssm import standing_in
with standing_in(), vmamba.recorded_runs() as runs:
    runpy.run_path(sys.argv[1], run_name="__main__")
    print(sorted({type(module).__name__ + " " + name for name, module in sys.modules.items()
                  if name in ("mamba_ssm", "selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda")}))
    print(sorted({run.backend for run in runs}))
"""
#: The same process runs the script once more as `vmamba run` does: most of the time goes into imports.
AGAIN = """
assert "mamba_ssm" not in sys.modules
for name in [name for name in sys.modules if name.startswith("mambavision")]:
    del sys.modules[name]
from vmamba.cli import main
assert main(["run", sys.argv[1]]) == 0
"""


def run(packages: str, *words: str) -> list[str]:
    """The last lines that a program prints which sees the packages in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER / packages), "OMP_NUM_THREADS": "1"}
    # What is interpreted elsewhere in the tests: these have no kernels of Triton's to run, and a user has not set it.
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def check_mambavision(said: dict[str, Any]) -> None:
    assert said["outputs"] <= CLOSE
    assert said["all"] <= CLOSE
    assert said["gradients"] > 80
    assert said["public"] == [1, 1000]
    assert said["finite"]
    assert said["scan"].startswith("vmamba.integrations.mamba_ssm")
    assert "+vmamba" in said["mamba_ssm"]


def test_mambavision() -> None:
    lines = run("clients", "-W", "ignore", "-c", WITHIN + AGAIN, str(SCRIPTS / "mambavision_client.py"))
    within, modules, backends, again = lines[-4:]
    check_mambavision(json.loads(within))
    assert modules == "['StandIn mamba_ssm']"
    assert backends == "['oflex']"
    check_mambavision(json.loads(again))


def test_mamba_ssm_itself_over_the_compiled_stand_ins() -> None:
    said, modules, backends = run("mamba-ssm", "-c", WITHIN, str(SCRIPTS / "mamba_ssm_itself.py"))[-3:]
    report = json.loads(said)
    assert report["file"].startswith(str(FOLDER))
    assert {name: apart for name, apart in report["apart"].items() if not apart <= CLOSE} == {}
    assert modules == str(
        ["StandIn causal_conv1d_cuda", "StandIn selective_scan_cuda", "module causal_conv1d", "module mamba_ssm"]
    )
    assert backends == "['oflex']"


def test_mamba2_itself_beside_its_stand_in() -> None:
    said, _, backends = run("mamba-ssm", "-c", WITHIN, str(SCRIPTS / "mamba2_itself.py"))[-3:]
    report = json.loads(said)
    assert report["file"].startswith(str(FOLDER))
    for name, apart in report["apart"].items():
        assert apart.pop("same start"), name
        # Terms of the decays' gradients cancel.
        assert {what: error for what, error in apart.items() if not error <= 3 * CLOSE} == {}, name
    assert backends == "['oflex']"
