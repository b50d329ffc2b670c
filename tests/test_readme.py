"""Every Python block of the README runs as it stands, in a folder that holds what a finished run leaves behind."""

import re
from pathlib import Path

import pytest

import vmamba

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The line of the README that each block begins at, and its code."""
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)) + 1, block[1]) for block in blocks]


BLOCKS = python_blocks(README.read_text(encoding="utf-8"))


def test_blocks_are_found():
    assert python_blocks("a\n```python\nx = 1\n```\nb\n```console\n$ y\n```\n```python\nz\n```\n") == [
        (3, "x = 1\n"),
        (10, "z\n"),
    ]
    assert BLOCKS


@pytest.mark.long
@pytest.mark.parametrize(("line", "code"), BLOCKS, ids=[f"line{line}" for line, _ in BLOCKS])
def test_block_runs(line, code, tmp_path, monkeypatch):
    weights = tmp_path / "runs/my-run/best.safetensors"
    vmamba.save_weights(weights, vmamba.create_model("vmamba_nano").state_dict())
    monkeypatch.chdir(tmp_path)
    # Blank lines in front, so that an error names the README's own line.
    exec(compile("\n" * (line - 1) + code, str(README), "exec"), {"__name__": "readme"})
