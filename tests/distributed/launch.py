"""Starts several processes of one function, on gloo, as a cluster's launcher would.

They are forked from a server that has imported torch and this package once: fresh interpreters would take most of the
tests' time.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = ["accelerate.utils", "jsonargparse", "timm.optim", "timm.scheduler", "vmamba.cli.runs", "vmamba.train.run"]


class Ended(NamedTuple):
    """How one process ended (minus the signal that killed it), and what it printed on either stream."""

    status: int | None
    said: str


def together(
    folder: Path, program: Callable[..., Any], *values: Any, env: Mapping[str, str] | None = None, timeout: float = 240
) -> list[Ended]:
    """Call ``program(*values)`` in two processes that know each other, with ``env`` set; none outlives the call.

    Args:
        folder: for what they print.
        program: a function of a module that can be imported.
        values: what can be pickled.
        env: environment variables.
        timeout: seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    files = [folder / f"said-{rank}.txt" for rank in range(2)]
    started = [
        context().Process(
            target=_call,
            args=(file, {**shared, **(env or {}), "RANK": str(rank), "LOCAL_RANK": str(rank)}, program, values),
        )
        for rank, file in enumerate(files)
    ]
    until = time.monotonic() + timeout
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in started:
            process.kill()
    return [Ended(process.exitcode, file.read_text()) for process, file in zip(started, files, strict=True)]


def context() -> Any:
    """Of multiprocessing."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def _call(said: Path, env: dict[str, str], program: Callable[..., Any], values: tuple[Any, ...]) -> None:
    file = said.open("w")
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    prepare(env)
    status = program(*values)
    sys.stdout.flush()
    sys.exit(status)


def prepare(env: Mapping[str, str]) -> None:
    """Of a process that trains: its environment, one thread, no GPU, no pictures."""
    import torch

    import vmamba.train.course

    os.environ |= {**env, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    vmamba.train.course.save_figure = lambda *_: None
