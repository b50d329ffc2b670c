"""Places that results go to, checked before anything is computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vmamba.checkpoints import write_atomically
from vmamba.errors import OutputError
from vmamba.tasks.run_folder import check_writable_folder


def check_writable_file(path: Path) -> None:
    """Make sure that ``path`` is, or can become, a file that we may write to. Creates nothing.

    Raises:
        OutputError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give a file")
    if path.parent.exists() and not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: {path.parent} is a file, not a folder")
    check_writable_folder(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as JSON, the whole file or nothing. Numbers that are not finite become null: JSON has none.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n"
    # A file name may hold bytes that are no text; as \\udcXX they stay valid JSON.
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
