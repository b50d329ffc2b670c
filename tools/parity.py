"""Run this package against numbers that upstream VMamba computed, and print how far apart they are.

    python tools/parity.py FOLDER [--kinds small full segmentation detection] [--match PATTERN]

FOLDER holds the cases of one kind, or such folders:

    small, full   folders of these names, each with a ``manifest.json`` and one ``.safetensors`` file a case
    segmentation  ``cases.json`` with ``decode_head``s, and ``full_*.json``
    detection     ``cases.json`` with ``box_head``s, ``ops.json``, ``keys.json`` and ``full_*.json``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import parity_detection
import parity_networks
import parity_segmentation
from parity_tools import Result


class Kind(NamedTuple):
    """Cases of one kind: whether a folder holds such, and how those are run whose names match a pattern."""

    here: Callable[[Path], bool]
    results: Callable[[Path, str], Iterator[Result]]


KINDS = {
    "small": Kind(partial(parity_networks.has, "small"), parity_networks.small_results),
    "full": Kind(partial(parity_networks.has, "full"), parity_networks.full_results),
    "segmentation": Kind(parity_segmentation.here, parity_segmentation.results),
    "detection": Kind(parity_detection.here, parity_detection.results),
}


def found(folder: Path, kinds: list[str]) -> Iterator[tuple[Kind, Path]]:
    """The kinds of cases in a folder and in those directly within it."""
    for place in [folder, *sorted(each for each in folder.iterdir() if each.is_dir())]:
        for kind in kinds:
            if KINDS[kind].here(place):
                yield KINDS[kind], place


def _cell(name: str, error: float, allowed: float) -> str:
    return f"{name} {error:.1e}" + ("" if error <= allowed else f" > {allowed:g}")


def main() -> int:
    """Print a row a case; exit 1 if any is off or there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--match", default="*", help="shell pattern of case names")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    total = failed = 0
    for kind, place in found(options.folder, options.kinds):
        for result in kind.results(place, options.match):
            total += 1
            failed += not result.good
            cells = [_cell(name, *each) for name, each in result.errors.items()]
            print(f"{'ok  ' if result.good else 'FAIL'} {result.name:36} {'  '.join(cells)}", flush=True)
    print(f"{total - failed} of {total} cases within tolerance")
    if not total:
        print(f"no cases in {options.folder}; see --help for what it should hold", file=sys.stderr)
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
