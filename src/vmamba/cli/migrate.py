"""``vmamba migrate``: rewrite files that ask for what was removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, add_paths, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


def _migrate_options(parser: CommandParser) -> None:
    text = "Python, YAML and JSON files, notebooks, and folders of them."
    add_paths(parser, "paths", "FILE_OR_FOLDER", text, "+")
    parser.add_argument(
        "--to", default="oflex", help="What takes the place of core: oflex, or mamba (needs mamba-ssm)."
    )
    parser.add_argument(
        "--write", action="store_true", help="Change the files; without it only show what would change."
    )


def _migrate(values: Namespace) -> int:
    from vmamba.migrate.files import run_migrate

    return run_migrate(values.paths, values.to, values.write, console())


MIGRATE = Command("Rewrite files that ask for the removed backend core.", _migrate_options, _migrate, config_file=False)
