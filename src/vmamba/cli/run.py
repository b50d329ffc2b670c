"""``vmamba run``: run a script that is written against mamba-ssm where that is not installed."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import runpy
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command
from vmamba.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


@dataclass(frozen=True)
class _RunCommand(Command):
    """A command that parses what stands in front of the script's arguments; those are the script's own."""

    def __call__(self, name: str, words: Sequence[str]) -> int:
        from vmamba.cli.parsing import CommandParser

        parser = CommandParser(name, self.summary, self.config_file)
        self.options(parser)
        own = 2 if words and words[0] == "-m" else 1
        values = parser.parse(words[:own])
        values.arguments = list(words[own:])
        return self.run(values)


def _run_options(parser: CommandParser) -> None:
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="A Python file, run as `python SCRIPT` runs it.")
    parser.add_argument("arguments", nargs="*", metavar="ARGS", help="The script's own, options among them.")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="Run a module, as `python -m MODULE` does.")


def _run(values: Namespace) -> int:
    if values.module is not None:
        _check_module(values.module)
        argv, folder = [values.module, *values.arguments], os.getcwd()
    elif values.script is None:
        raise ConfigError("`vmamba run` needs SCRIPT.py or -m MODULE (see `vmamba run --help`)")
    elif not os.path.exists(values.script):
        raise ConfigError(f"{values.script!r} does not exist; `vmamba run` takes a Python file, or -m and a module")
    else:
        argv, folder = [values.script, *values.arguments], os.path.dirname(os.path.realpath(values.script))

    from vmamba.integrations.mamba_ssm import install

    install()
    sys.argv = argv
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [folder]  # Python put there where `vmamba` itself lies
    if values.module is not None:
        return _status_of(lambda: runpy.run_module(values.module, run_name="__main__", alter_sys=True))
    if not os.path.isfile(values.script) or zipfile.is_zipfile(values.script):  # what holds a __main__.py
        return _status_of(lambda: runpy.run_path(values.script, run_name="__main__"))
    return _status_of(lambda: _run_file(os.path.abspath(values.script)))


def _run_file(path: str) -> None:
    """Run a file as the module ``__main__``, which it stays for its threads and what it does at exit."""
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __loader__=SourceFileLoader("__main__", path))
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _check_module(module: str) -> None:
    """Raise `ConfigError` unless Python finds the module; what goes wrong inside it is not ours."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(1, os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError as error:  # a parent package
        raise ConfigError(
            f"no module named {error.name!r}, of which `vmamba run -m {module}` is to run a part"
        ) from None
    if spec is None:
        raise ConfigError(f"no module named {module!r} that can be run, in {os.getcwd()} or among what is installed")


def _status_of(run: Callable[[], object]) -> int:
    """Run, and return the exit code that Python itself would give; tracebacks begin in the script."""
    try:
        run()
    except SystemExit as finished:
        if finished.code is None or isinstance(finished.code, int):
            return finished.code or 0
        print(finished.code, file=sys.stderr)
        return 1
    except Exception as error:
        trace = _of_script(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback behind this file's calls and runpy's."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        trace = trace.tb_next
    return trace


RUN = _RunCommand(
    "Run a script unchanged, with this package in the place of mamba-ssm.", _run_options, _run, config_file=False
)
