"""Several processes that train together: one that is gone ends the run with a clear error in the others."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmamba.errors import TrainingError

#: Words of gloo's and NCCL's messages where another process does not answer any more; there is no type of their own.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Timed out waiting",
    "timeout",
    "Socket closed",
    "remote process exited",
)


@contextmanager
def others_answer(accelerator: Any, run: Path) -> Iterator[None]:
    """Turn the collective operation that fails because a process is gone into one error that says what to do.

    Args:
        accelerator: the processes.
        run: the run's folder.

    Raises:
        TrainingError: a process was killed, lost its machine, or did not answer for ``process_timeout`` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not is_lost_process(error):
            raise
        raise TrainingError(
            f"process {accelerator.process_index} of {accelerator.num_processes} lost another one, which was killed or "
            f"did not answer ({str(error).splitlines()[0]}). Look for its own last words, then start all of them again "
            f"with --resume {shlex.quote(str(run))}"
        ) from error


def is_lost_process(error: RuntimeError) -> bool:
    """Whether ``error`` is a collective operation's whose partner is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in _GONE)
