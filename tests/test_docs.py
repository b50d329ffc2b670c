"""What README and docs/ show is true: Python blocks run as they stand, commands have the options that they are given,
messages are those of the sources, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import vmamba
from vmamba.cli.frame import Command, CommandGroup
from vmamba.cli.table import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


class Block(NamedTuple):
    page: Path
    line: int  # that its text begins at
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, text: str, language: str) -> list[Block]:
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, block.start(1)) + 1, block[1]) for block in found]


def blocks_of_all(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, page.read_text(encoding="utf-8"), language)]


PYTHON = blocks_of_all("python")
CONSOLE = blocks_of_all("console")


def test_blocks_are_found() -> None:
    text = "a\n```python\nx = 1\n```\nb\n```console\n$ y\n```\n```python\nz\n```\n"
    assert [block[1:] for block in blocks(ROOT, text, "python")] == [(3, "x = 1\n"), (10, "z\n")]
    assert [block[1:] for block in blocks(ROOT, text, "console")] == [(7, "$ y\n")]
    assert {block.page.name for block in PYTHON} >= {"README.md", "index.md", "weights.md", "libraries.md"}
    assert {block.page.name for block in CONSOLE} >= {"README.md", "index.md", "training.md", "export.md"}


# ---- Python --------------------------------------------------------------------------------------------------------


def released(folder: Path) -> Callable[..., Path]:
    """What stands for the download of a model's weights: a training checkpoint with fresh ones."""

    def fetch(name: str, *_: object) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            weights = vmamba.create_model(name).state_dict()
            key = vmamba.weights.official_weights(name).key
            torch.save({key: weights, "model_ema": weights, "epoch": 7}, path)
        return path

    return fetch


@pytest.mark.long
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = released(tmp_path)
    monkeypatch.setattr("vmamba.models.create.fetch_official", fetch)
    monkeypatch.setattr("vmamba.weights.released.fetch_official", fetch)
    monkeypatch.chdir(tmp_path)
    if "my.pth" in block.text:
        Path("my.pth").symlink_to(fetch("vmamba_tiny_s1l8"))
        vmamba.save_weights("my.safetensors", vmamba.read_weights("my.pth").state_dict)
    # Blank lines in front, so that an error names the page's own line.
    exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), {"__name__": "docs"})


# ---- the command line ----------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each command, without its comment and where its output goes."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            yield words[: words.index(">")] if ">" in words else words


def test_command_lines_are_found() -> None:
    text = "$ a --b 'c d' \\\n    --e  # f\nprinted\n$ g > h\n"
    assert list(command_lines(text)) == [["a", "--b", "c d", "--e"], ["g"]]


def parse(words: list[str]) -> None:
    """Parse the words after ``vmamba`` as the program does, and run nothing."""
    name, command = words[0], COMMANDS[words[0]]
    rest = words[1:]
    if isinstance(command, CommandGroup):
        if not rest:
            return
        name, command, rest = f"{name} {rest[0]}", command.commands[rest[0]], rest[1:]
    assert isinstance(command, Command)
    with contextlib.suppress(SystemExit):  # --help, --print_config; a mistake is a ConfigError
        dataclasses.replace(command, run=lambda _: 0, defaults=None)(name, rest)  # defaults read the files


@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_commands_exist_and_have_these_options(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text("lr: 0.001\n")
    for words in command_lines(block.text):
        if words[0] in ("torchrun", "accelerate"):  # which start several processes of it
            assert words[words.index("vmamba") - 1] == "-m", words
            words = words[words.index("vmamba") :]
        if words[0] == "vmamba":
            parse(words[1:])
        elif words[0] == "torchrun":
            parse(words[words.index("-m") + 2 :])  # torchrun's own options, -m vmamba, and a command
        elif words[0] == "make":
            assert words[1] in targets
        elif words[0] == "export" or words[0].startswith("nnUNetv2_"):
            pass  # the shell's, and nnU-Net's own
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[:2] in (["pip", "install"], ["tensorboard", "--logdir"]), words


def test_a_wrong_option_is_seen() -> None:
    with pytest.raises(vmamba.ConfigError):
        parse(["train", "--no_such_option", "3"])


# ---- messages and links --------------------------------------------------------------------------------------------


@functools.cache
def templates() -> str:
    """Every text in the sources, with … for what is put in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"

    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py"))
    return "\0".join(
        text(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)
    )


def messages() -> list[str]:
    """What stands in backticks in the first column of docs/errors.md."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_list_is_one_of_the_sources(message: str) -> None:
    # From its first words on: to try every place for what may be put in before them would take seconds.
    pieces = [re.escape(piece) for piece in message.strip("…").split("…")]
    assert max(map(len, pieces)) > 8, "says too little to be found"
    assert re.search("[^\0]*?".join(pieces), templates()), message


def test_a_message_that_is_not_there_is_seen() -> None:
    assert "no class folders in …" in templates()
    assert "no such message, ever" not in templates()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """Inside docs/ the strict build looks at anchors too."""
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link
        if page.is_relative_to(ROOT / "docs") and not link.startswith("https://"):
            assert (page.parent / link).resolve().is_relative_to(ROOT / "docs"), f"{link} is not a part of the site"
