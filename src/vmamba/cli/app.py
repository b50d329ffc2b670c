"""The command that serves the page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, build, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser

_MODELS = "Run folders, weight files, files of `vmamba export`, names of released weights; by default what is there."
_EXAMPLES = "Image files and folders to try; by default two photographs of scikit-learn's."


def _options(parser: CommandParser) -> None:
    from vmamba.app.serve import AppConfig

    parser.add_argument("models", nargs="*", default=[], metavar="MODEL_OR_RUN", help=_MODELS)
    parser.add_argument("--examples", type=Path, nargs="+", default=[], metavar="IMAGE_OR_FOLDER", help=_EXAMPLES)
    parser.add_group(AppConfig, skip={"models", "examples"})


def _app(values: Namespace) -> int:
    from vmamba.app.serve import AppConfig, serve

    values.models, values.examples = tuple(values.models), tuple(values.examples)
    serve(build(AppConfig, values), console())
    return 0


APP = Command("Serve a page in the browser: answers, scan maps and overlays for your images.", _options, _app)
