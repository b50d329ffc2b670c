"""Marks for tests that need something from outside of Python: they are skipped by name where it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def requires_package(package: str, what: str | Path) -> pytest.MarkDecorator:
    """Skip unless Debian's ``package`` is here: told by a path of its, or by the name of a program on the PATH."""
    present = Path(what).exists() if isinstance(what, Path) else shutil.which(what) is not None
    return pytest.mark.skipif(not present, reason=f"needs the system package {package} ({what} is missing)")
