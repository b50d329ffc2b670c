"""The command line's frame: finds the command, runs it, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vmamba.cli.allocator import keep_freed_memory
from vmamba.errors import ConfigError, TrainingStopped, VMambaError, nearest
from vmamba.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 2 a mistake of the user's (one line on standard error), 130 an interruption from the keyboard, 143 and
    138 a training that saved and stopped on SIGTERM and SIGUSR1.
    Anything else that goes wrong is a fault of this package and keeps its traceback.

    Args:
        argv: the words after ``vmamba``; the process's own when None.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a reader that went away shows here, not at the interpreter's exit
        return status
    except VMambaError as error:
        print("vmamba: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except TrainingStopped as stopped:
        print("vmamba:", stopped, file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("vmamba: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Else the interpreter flushes into the closed pipe once more, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(words: list[str]) -> int:
    from vmamba.cli.table import COMMANDS

    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if first in ("-V", "--version"):
        print(f"vmamba {__version__}")
        return 0
    command = COMMANDS.get(first)
    if command is None:
        kind, legal = ("an option", ["--help", "--version"]) if first.startswith("-") else ("a command", list(COMMANDS))
        raise ConfigError(f"{first!r} is not {kind} of vmamba; it has {', '.join(legal)}{nearest(first, legal)}")
    keep_freed_memory()
    try:
        return command(first, words[1:])
    except SystemExit as finished:  # how the parser ends after --help and --print_config
        return finished.code if isinstance(finished.code, int) else 0


def _overview() -> str:
    from vmamba.cli.table import COMMANDS

    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vmamba COMMAND [options]",
            "",
            "Visual state-space models (VMamba): train, evaluate, predict, and ask what runs here.",
            "",
            "commands:",
            *rows,
            "",
            "options:",
            "  --help, --version",
            "",
            "`vmamba COMMAND --help` lists the options of a command; start with `vmamba demo`.",
        ]
    )
