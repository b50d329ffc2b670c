"""A kernel that was launched once is launched directly, with the arguments that it would get through Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = Path(__file__).with_name("launch_kernels.py")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, _PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "name", ["first", "parameter", "half", "none", "integer factor", "constants", "warps", "device"]
)
def test_a_new_combination_goes_through_triton_once(found: dict[str, Any], name: str) -> None:
    assert found[name]["asked"] == 1
    assert found[name]["same"]


@pytest.mark.parametrize("name", ["other numbers", "negative", "stream"])
def test_a_known_combination_does_not(found: dict[str, Any], name: str) -> None:
    assert found[name]["asked"] == 0
    assert found[name]["same"]
    assert found[name]["types"] == found["first"]["types"]


def test_a_kept_launch_is_the_one_that_it_was_kept_for(found: dict[str, Any]) -> None:
    assert all(found[name]["same"] for name in ("bound", "bound half", "bound parameter"))
    assert [found[name]["asked"] for name in ("bound", "bound half")] == [0, 1]
    assert found["bound half"]["types"] == ["*fp16", "*fp16", "i32", "fp32"]


def test_numbers_of_64_bits_are_left_to_triton(found: dict[str, Any]) -> None:
    assert found["wide"]["asked"] == 2
    assert found["wide"]["types"] == ["*fp32", "*fp32", "i64", "fp32"]


def test_kinds_make_kernels_of_their_own(found: dict[str, Any]) -> None:
    assert found["first"]["types"] == ["*fp32", "*fp32", "i32", "fp32"]
    assert found["half"]["types"] == ["*fp16", "*fp32", "i32", "fp32"]
    assert found["none"]["types"] == ["*fp32", "i32", "fp32"]
    assert found["integer factor"]["types"] == ["*fp32", "*fp32", "i32", "i32"]


def test_grid_and_stream_are_those_of_the_call(found: dict[str, Any]) -> None:
    assert found["other numbers"]["grid"] == [5, 1, 1]
    assert found["stream"]["stream"] == 9


def test_hooks_see_every_launch(found: dict[str, Any]) -> None:
    assert found["hook"]["asked"] == 2
    assert found["hook"]["seen"] == ["scale", "scale"]


def test_what_is_collected_is_not_launched(found: dict[str, Any]) -> None:
    assert found["collected"] == [2, 0]
