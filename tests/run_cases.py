"""Runs' folders compared: what is the same in two of them that trained alike, and what a table of figures holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vmamba
from vmamba.train.folder.run_folder import RunFolder

#: What differs between two runs that are otherwise the same.
CLOCKS = ("seconds", "images_per_second", "memory_mib", "data_wait")


def metrics(path: Path) -> list[dict[str, str]]:
    with RunFolder(path).metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bitwise, all the way down; clocks excepted."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in CLOCKS:
                assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("best", "last"):
        x, y = (vmamba.read_weights(getattr(RunFolder(path), name)) for path in (a, b))
        assert_equal(x.state_dict, y.state_dict, name)
        assert x.metadata == y.metadata
    assert timeless(metrics(a)) == timeless(metrics(b))
    assert_equal(RunFolder(a).read_state(), RunFolder(b).read_state(), "state")
