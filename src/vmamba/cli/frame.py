"""What a command is: its options and what runs it, alone or in a group under one word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.console import Console

    from vmamba.cli.parsing import CommandParser


#: The option that prints a command's configuration instead of running it.
PRINT = "--print_config"


@dataclass(frozen=True)
class Command:
    """One word after ``vmamba``.

    Attributes:
        summary: its line in ``vmamba --help``.
        options: adds its options to a parser.
        run: does it, given the parsed options; returns the exit code.
        defaults: defaults that depend on other options: called with all that was parsed, and with what the user gave.
        given: called with what the user gave, to which it may add; ``run`` then gets that alone, without defaults.
        explain: for ``--print_config``, called as ``run`` is: the values that it would use, and by dotted name where
            they come from; else what was parsed is printed.
        config_file: whether the options may come from a YAML file too.
    """

    summary: str
    options: Callable[[CommandParser], None]
    run: Callable[[Namespace], int]
    defaults: Callable[[Namespace, Namespace], dict[str, Any]] | None = None
    given: Callable[[Namespace], None] | None = None
    explain: Callable[[Namespace], tuple[Mapping[str, Any], Mapping[str, str]]] | None = None
    config_file: bool = True

    def __call__(self, name: str, words: Sequence[str]) -> int:
        """Parse ``words`` and run."""
        from vmamba.cli.parsing import CommandParser

        parser = CommandParser(name, self.summary, self.config_file)
        self.options(parser)
        words = parser.normalised(words)
        if self.config_file and any(word.partition("=")[0] == PRINT for word in words):
            print(self._printed(parser, words), end="")
            return 0
        return self.run(parser.parse(words, self.defaults, self.given))

    def _printed(self, parser: CommandParser, words: Sequence[str]) -> str:
        """The configuration as YAML, with a comment on where each value comes from."""
        from vmamba.cli.printing import annotated

        plain = [word for word in words if word.partition("=")[0] != PRINT]
        if self.explain is not None:
            return annotated(*self.explain(parser.parse(plain, self.defaults, self.given)))
        return annotated(*parser.described(plain, self.defaults))


@dataclass(frozen=True)
class CommandGroup:
    """A word after ``vmamba`` with commands of its own.

    Attributes:
        summary: its line in ``vmamba --help``.
        commands: by name.
    """

    summary: str
    commands: Mapping[str, Command]

    def __call__(self, name: str, words: Sequence[str]) -> int:
        """Run the command that the first word names, or list them."""
        first = words[0] if words else "--help"
        if first in ("-h", "--help", "help"):
            print(self._overview(name))
            return 0
        if first not in self.commands:
            legal = list(self.commands)
            raise ConfigError(
                f"{first!r} is not a command of `vmamba {name}`; it has {', '.join(legal)}{nearest(first, legal)}"
            )
        return self.commands[first](f"{name} {first}", words[1:])

    def _overview(self, name: str) -> str:
        width = max(map(len, self.commands))
        rows = [f"  {word:<{width}}  {command.summary}" for word, command in self.commands.items()]
        end = f"`vmamba {name} COMMAND --help` lists the options of a command."
        return "\n".join([f"usage: vmamba {name} COMMAND [options]", "", self.summary, "", "commands:", *rows, "", end])


def console() -> Console:
    """Where a command prints."""
    from rich.console import Console

    return Console(highlight=False)


def add_paths(parser: CommandParser, name: str, metavar: str, text: str, nargs: str | None = None) -> None:
    """Add an argument that is a path, or more with ``nargs``."""
    parser.add_argument(name, type=Path, metavar=metavar, help=text, nargs=nargs)


def build(config: type[Any], values: Namespace) -> Any:
    """The task's configuration from the options of the same names."""
    given = {name: value for name, value in vars(values).items() if name != "config"}
    return config(**given)
