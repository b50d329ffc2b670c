"""What is said of versions, in one place and another, is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import versions

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DEPENDENCIES = PROJECT.partition("\ndependencies = [")[2].partition("\n]")[0]
LOWER_BOUNDS = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\w.]+)"', DEPENDENCIES))
#: What changes most from version to version, and so is tried at its oldest.
TRIED = {"timm", "accelerate", "safetensors", "jsonargparse"}


def numbers(version: str) -> list[int]:
    """``1.0.0`` and ``1.0`` are one version."""
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return found


def test_the_lowest_versions_are_those_declared() -> None:
    lines = (ROOT / "tools" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(lowest) == TRIED
    for name, version in lowest.items():
        assert numbers(version) == numbers(LOWER_BOUNDS[name]), name


def test_the_oldest_torch_is_the_one_declared() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"^OLDEST := ([\d.]+)$", makefile, re.MULTILINE)
    assert numbers(oldest) == numbers(LOWER_BOUNDS["torch"])


def test_the_table_has_the_oldest_versions_and_no_failure() -> None:
    """`make versions` makes it; docs/versions.md tells what each row ran."""
    rows = [
        dict(zip(versions.HEADER, row, strict=True))
        for row in versions.table_of(versions.DOCUMENT.read_text(encoding="utf-8"))
    ]
    assert all(row["failed"] == "0" and int(row["passed"]) > 0 for row in rows)
    lowest = [row for row in rows if all(numbers(row[name]) == numbers(LOWER_BOUNDS[name]) for name in TRIED)]
    assert [row for row in lowest if numbers(row["torch"]) == numbers(LOWER_BOUNDS["torch"])]


@pytest.mark.parametrize("torch", ["2.6.0", "2.10.0", "2.11.0", "3.0.0"])
def test_a_row_takes_the_place_of_its_own_versions(torch: str) -> None:
    def row(torch: str, passed: str) -> tuple[str, ...]:
        return ("3.11.7", torch, "1", "1", "1", "1", passed, "0", "0", "1.0", "`make versions`")

    text = "before\n\n| a |\n| --- |\n\n| another |\n| --- |\n| table |\n\nafter\n"
    for each in ("2.11.0", "2.6.0", torch):
        text = versions.with_row(text, row(each, "1"))
    text = versions.with_row(text, row(torch, "2"))
    rows = versions.table_of(text)
    assert [each[1] for each in rows] == sorted({"2.6.0", "2.11.0", torch}, key=numbers)
    assert [each[6] for each in rows if each[1] == torch] == ["2"]
    assert text.startswith("before\n\n| Python |")
    assert text.endswith("|\n\n| another |\n| --- |\n| table |\n\nafter\n")
