"""Programs that call mamba-ssm as ten public projects do (docs/derived-projects.md) run unchanged, and train."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import vmamba
from vmamba.integrations.mamba_ssm import standing_in

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "derived"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "training")
PROGRAMS.append(FOLDER / "xfmamba" / "program.py")
IDS = [str(path.relative_to(FOLDER).with_suffix("")) for path in PROGRAMS]


def check_losses(printed: str) -> None:
    losses = [float(found) for found in re.findall(r"^step \d loss (.*)$", printed, re.MULTILINE)]
    assert len(losses) == 3, printed
    assert losses[2] < losses[1] < losses[0] < 10, printed


def test_there_are_ten_and_each_names_its_file() -> None:
    page = (ROOT / "docs" / "derived-projects.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w.-]+/[\w.-]+)` \| `(\S+\.py)` \|", page, re.MULTILINE)
    assert len(listed) == len(PROGRAMS) == 10
    texts = [path.read_text(encoding="utf-8") for path in PROGRAMS]
    named = [re.search(r"After the calls of ([\w.-]+/[\w.-]+), ([\w./-]+\.py)", text) for text in texts]
    assert {found.groups() for found in named if found} == set(listed)


@pytest.mark.parametrize("program", PROGRAMS, ids=IDS)
def test_program(program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(program.parent)
    monkeypatch.syspath_prepend(FOLDER)
    # torch.cuda.amp's words are deprecated, and what the projects write.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            with standing_in(), vmamba.recorded_runs() as runs:
                runpy.run_path(str(program), run_name="__main__")
        finally:
            for name in set(sys.modules) - before:
                if str(FOLDER) in str(getattr(sys.modules[name], "__file__", None)):
                    del sys.modules[name]
    check_losses(capsys.readouterr().out)
    assert "oflex" in {run.backend for run in runs}


@pytest.mark.long
@pytest.mark.parametrize("program", ["vmunet.py", "xfmamba/program.py"])
def test_by_vmamba_run(program: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "vmamba", "run", str(FOLDER / program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_losses(done.stdout)
    told = "vmamba: csm_triton, a cross-scan for CUDA alone, is computed on the CPU by vmamba\n"
    assert done.stderr == (told if "xfmamba" in program else "")
