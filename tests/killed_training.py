"""Trainings from the command line that are killed, or run out of disk, at a given point; called by tests of training.

Run as a program it reads jobs from standard input, and does each in a process of its own. Those are forked from one
that has imported everything, which is most of what a short training costs.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict


class Job(TypedDict, total=False):
    """What one process does.

    words: of ``vmamba train``.
    at: a point (a key of `POINTS`), and at which time there the process gets ``signal``.
    signal: its name; SIGKILL if left out.
    after: instead, seconds after the start of training at which it is killed from outside.
    largest_file: bytes; larger ones cannot be written.
    """

    words: list[str]
    at: tuple[str, int]
    signal: str
    after: float
    largest_file: int


class Done(TypedDict):
    """How it ended: its exit status, negative for the signal that killed it, and what it printed."""

    status: int
    out: str
    err: str


def run_jobs(jobs: Sequence[Job], folder: Path, timeout: float = 300.0) -> list[Done]:
    """Do jobs one after the other; ``folder`` takes what they print."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        input=json.dumps(list(jobs)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )
    results: list[Done] = json.loads(done.stdout.splitlines()[-1])
    return results


def _calls(owner: Any, name: str, count: int, act: Callable[..., Any]) -> None:
    """Have ``act(plain, *args)`` done instead of the ``count``-th call, counted from 1, of a function."""
    plain, seen = getattr(owner, name), [0]

    def call(*args: Any, **named: Any) -> Any:
        seen[0] += 1
        return act(plain, *args, **named) if seen[0] == count else plain(*args, **named)

    setattr(owner, name, call)


def _before_update(count: int, number: int) -> None:
    from vmamba.train.loop.update import Updater

    def act(plain: Callable[..., Any], *args: Any) -> Any:
        os.kill(os.getpid(), number)
        return plain(*args)

    _calls(Updater, "update", count, act)


def _before_move(count: int, number: int) -> None:
    def act(plain: Callable[..., Any], *args: Any) -> Any:
        os.kill(os.getpid(), number)
        return plain(*args)

    _calls(os, "replace", count, act)


def _half_written(count: int, number: int) -> None:
    import torch

    def act(plain: Callable[..., Any], content: Any, file: Any) -> Any:
        plain(content, file)
        file.flush()
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), number)

    _calls(torch, "save", count, act)


#: Where a process may be killed: before an update of the weights, before a file of a save takes its place, and when a
#: state is half on disk.
POINTS = {"update": _before_update, "move": _before_move, "half": _half_written}


def _child(job: Job, ready: int) -> int:
    from vmamba.cli.main import main
    from vmamba.train import course, run

    course.save_figure = lambda *_: None  # drawing takes longer than training here
    if "largest_file" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
    if "at" in job:
        point, count = job["at"]
        POINTS[point](count, getattr(signal, job.get("signal", "SIGKILL")))
    plain = run.Course.train

    def train(course: Any) -> None:
        os.write(ready, b"!")
        plain(course)

    run.Course.train = train  # type: ignore[method-assign]
    return main(["train", *job["words"]])


def _do(job: Job, folder: Path, number: int) -> Done:
    ready, tell = os.pipe()
    places = [folder / f"{number}.{name}" for name in ("out", "err")]
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for descriptor, place in enumerate(places, 1):
                os.dup2(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            status = _child(job, tell)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(tell)
    if "after" in job and os.read(ready, 1):
        time.sleep(job["after"])
        os.kill(pid, signal.SIGKILL)
    os.close(ready)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out, err = (place.read_text() for place in places)
    return {"status": ended, "out": out, "err": err}


#: All that a training imports, on the way too.
MODULES = """
accelerate.utils jsonargparse matplotlib.figure rich.console sklearn.datasets timm.data.mixup
timm.data.transforms_factory timm.optim timm.scheduler timm.utils.model_ema torchvision torch._dynamo vmamba.cli.table
vmamba.tasks.classification.task vmamba.train.run yaml
"""

if __name__ == "__main__":
    import torch

    for module in MODULES.split():
        importlib.import_module(module)
    torch.set_num_threads(1)
    print(json.dumps([_do(job, Path(sys.argv[1]), i) for i, job in enumerate(json.load(sys.stdin))]))
