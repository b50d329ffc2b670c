"""Run tests with this Python and its libraries, and put the outcome into the table of docs/versions.md.

`make versions` calls it once for each torch of the table: tools/versions.py MADE_BY [TEST ...], MADE_BY the command
that a reader repeats it with. A row of the same versions is replaced, so that one can be made anew alone.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "versions.md"
LIBRARIES = ("torch", "timm", "accelerate", "safetensors", "jsonargparse")
HEADER = ("Python", *LIBRARIES, "passed", "failed", "skipped", "minutes", "by")


def table_of(text: str) -> list[tuple[str, ...]]:
    """The rows of the first table in ``text``, without the header."""
    table = re.search(r"(^\|.*\|\n)+", text, re.M)
    lines = table[0].splitlines() if table else []
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def with_row(text: str, row: tuple[str, ...]) -> str:
    """``text`` with ``row`` in its table, in the place of the row of the same versions, sorted by torch and Python."""
    versions = 1 + len(LIBRARIES)
    rows = [old for old in table_of(text) if old[:versions] != row[:versions]] + [row]

    def numbers(row: tuple[str, ...]) -> list[list[int]]:
        return [[int(part) for part in re.findall(r"\d+", row[i])] for i in (1, 0)]

    lines = [HEADER, ("---",) * len(HEADER), *sorted(rows, key=numbers)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return re.sub(r"(^\|.*\|\n)+", lambda _: table + "\n", text, count=1, flags=re.M)


def main() -> int:
    """Run pytest and return its exit status."""
    made_by, *tests = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        # Not the part's own number of processes: the table says how long it takes on two cores.
        command = [sys.executable, "-m", "pytest", "-rs", "-n", "2", "--dist", "worksteal", f"--junitxml={report}"]
        status = subprocess.run([*command, *(tests or ["tests"])], cwd=ROOT).returncode
        if not report.exists():
            return status or 1
        (suite,) = ElementTree.parse(report).iter("testsuite")
    total, failed, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors", 0))
    counts = (str(total - failed - skipped), str(failed), str(skipped), f"{float(suite.get('time', 0)) / 60:.1f}")
    libraries = tuple(version(name).partition("+")[0] for name in LIBRARIES)
    row = (platform.python_version(), *libraries, *counts, f"`{made_by}`")
    DOCUMENT.write_text(with_row(DOCUMENT.read_text(encoding="utf-8"), row), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
