"""``vmamba run``: what a script sees is what it sees under python, and the stand-ins."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmamba.cli import main
from vmamba.cli.run import _status_of
from vmamba.cli.table import COMMANDS

SCRIPT = """
import os, sys, json
import beside
main = sys.modules["__main__"].__dict__ is globals()
print(json.dumps([__name__, sys.argv, sys.path[0], __file__, main, __package__, __doc__, str(__spec__), beside.here]))
class Own: pass
import pickle
assert pickle.loads(pickle.dumps(Own)) is Own
if "--use" in sys.argv:
    import torch
    from mamba_ssm import Mamba
    import selective_scan_cuda, vmamba
    print(type(selective_scan_cuda).__name__)
if "--fail" in sys.argv:
    raise vmamba_error if False else KeyError("the script's own")
sys.exit({"--seven": 7, "--text": "no such file"}.get(sys.argv[-1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "at").mkdir()
    (tmp_path / "at" / "script.py").write_text(SCRIPT)
    (tmp_path / "at" / "beside.py").write_text("here = 'beside'\n")
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)


VMAMBA = (sys.executable, "-m", "vmamba", "run")


def test_a_script_runs_as_under_python(folder: Path) -> None:
    words = ("at/script.py", "--help", "-m", "--x-y=1", "--", "--seven")
    ours, theirs = run(folder, *VMAMBA, *words), run(folder, sys.executable, *words)
    assert theirs.returncode == 7
    assert (ours.stdout, ours.stderr, ours.returncode) == (theirs.stdout, theirs.stderr, theirs.returncode)


def test_a_module_with_the_stand_ins_and_its_traceback(folder: Path) -> None:
    got = run(folder / "at", *VMAMBA, "-m", "script", "-m", "--use", "--fail")
    about, kind = got.stdout.splitlines()
    file = str(folder / "at" / "script.py")
    assert json.loads(about)[:4] == ["__main__", [file, "-m", "--use", "--fail"], str(folder / "at"), file]
    assert kind == "StandIn"
    assert got.returncode == 1
    lines = got.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{file}", line ')
    assert lines[-1] == 'KeyError: "the script\'s own"'


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (7, 7), ("no such file", 1)])
def test_exit_codes_are_pythons(code: object, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def leave() -> None:
        raise SystemExit(code)

    assert _status_of(leave) == status
    assert capsys.readouterr().err == ("no such file\n" if code == "no such file" else "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs SCRIPT.py or -m MODULE (see `vmamba run --help`)"),
        (("nothing.py",), "'nothing.py' does not exist; `vmamba run` takes a Python file, or -m and a module"),
        (("-m", "no_such_module"), "no module named 'no_such_module' that can be run"),
        (("-m", "no_such_module.inner"), "no module named 'no_such_module', of which"),
        (("-m", "json"), "no module named 'json' that can be run"),
        (("-m",), "-m: expected one argument"),
        (("--bogus", "nothing.py"), "--bogus is not an option of `vmamba run`"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmamba: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_arguments_are_left_alone() -> None:
    seen = []
    command = dataclasses.replace(COMMANDS["run"], run=lambda values: seen.append(values) or 5)  # type: ignore[arg-type, type-var]
    words = ["--x-y", "--help", "--size=3", "-m", "--", "a b"]
    assert command("run", ["s.py", *words]) == 5
    assert command("run", ["-m", "pkg.mod", *words]) == 5
    assert command("run", ["-mpkg", *words]) == 5
    assert [(v.script, v.module, v.arguments) for v in seen] == [
        ("s.py", None, words), (None, "pkg.mod", words), (None, "pkg", words),
    ]  # fmt: skip
