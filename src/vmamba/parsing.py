"""The parser of one command: jsonargparse with short help and one-line errors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from vmamba.errors import ConfigError, nearest


class _Help(DefaultHelpFormatter):
    """Says the type in the option's placeholder, and a default only where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)  # type: ignore[no-untyped-call]

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = _type_of(action).removesuffix(" or null")
        if kind.startswith("dict"):
            return "{NAME: VALUE}"
        if kind.startswith("tuple"):
            return "[X,Y]"
        return kind.upper() if kind.isalpha() else "VALUE"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.option_strings and action.required:
            return f"{text} (required)"
        if not action.option_strings or action.nargs == 0 or action.default in (None, {}, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


class CommandParser(ArgumentParser):
    """Options from typed dataclasses, ``--config FILE.yaml``, and `ConfigError` for what it cannot parse."""

    def __init__(self, name: str, description: str, config_file: bool = True) -> None:
        super().__init__(
            prog=f"vmamba {name}",
            description=description,
            formatter_class=_Help,
            exit_on_error=False,
            allow_abbrev=False,
        )
        if config_file:
            self.add_argument("--config", action="config", help="YAML file of any of these options; later ones win.")
            self._describe("--print_config", "Print the configuration that results, as YAML, and exit.")

    def add_group(self, config: type[Any], name: str | None = None, skip: set[str] | None = None) -> None:
        """Add an option for each field of a dataclass but those in ``skip``, under ``--name.`` if there is one."""
        skipped: set[str | int] = {*(skip or ())}
        self.add_class_arguments(config, name, skip=skipped)
        for action in self._actions:
            if action.metavar is None and action.help == "Path to a configuration file.":
                action.metavar = "FILE"
                action.help = "YAML file of the options in this group."

    def _describe(self, option: str, text: str) -> None:
        for action in self._actions:
            if option in action.option_strings:
                action.help = text

    def parse(
        self, words: Sequence[str], defaults: Callable[[Namespace, Namespace], dict[str, Any]] | None = None
    ) -> Namespace:
        """Parse ``words`` and build the dataclasses among the options.

        Args:
            words: the command line after the command's name.
            defaults: called with what was parsed and with the part of it that the user gave; returns defaults
                that depend on it.

        Raises:
            ConfigError: an option, value or file that cannot be used.
        """
        self.usage = self._short_usage()
        try:
            values = self.parse_args(words)
            if defaults is not None:
                self.set_defaults(defaults(values, self.parse_args(words, defaults=False)))
                values = self.parse_args(words)
            built: Namespace = self.instantiate(values)
            return built
        except (ArgumentError, argparse.ArgumentError) as error:
            raise ConfigError(self._readable(str(error))) from error

    def _short_usage(self) -> str:
        positionals = [action for action in self._actions if not action.option_strings]
        words = [self._format_positional(action) for action in positionals]
        return " ".join([self.prog, *words, "[options]"])

    @staticmethod
    def _format_positional(action: argparse.Action) -> str:
        word = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        return {"+": f"{word} [{word} ...]", "*": f"[{word} ...]", "?": f"[{word}]"}.get(str(action.nargs), word)

    def _readable(self, message: str) -> str:
        """One line in the words of the command line, from jsonargparse's several."""
        options = [option for action in self._actions for option in action.option_strings]
        see = f"(see `{self.prog} --help`)"
        if match := re.match(r"unrecognized arguments: (.*)", message):
            word = match[1].split()[0].split("=")[0]
            if word.startswith("-"):
                return f"{word} is not an option of `{self.prog}`{nearest(word, options)} {see}"
            return f"`{self.prog}` does not take {match[1]!r} here {see}"
        if match := re.match(r"(?:Option|Group '(?P<group>.+?)' does not accept option) '(?P<name>.+?)'", message):
            name = ".".join(filter(None, (match["group"], match["name"])))
            keys = [option.lstrip("-") for option in options]
            return f"{name!r} is not an option of `{self.prog}`{nearest(name, keys)} {see}"
        if match := re.match(r"the following arguments are required: (.*)", message):
            return f"`{self.prog}` needs {match[1].upper()} {see}"
        if match := re.match(r"Problems parsing config: (.*)", message, re.DOTALL):
            return f"the configuration is not YAML: {match[1]}"
        if match := re.match(r'Parser key "(?P<key>.+?)":\s+(?P<rest>.*)', message, re.DOTALL):
            action = next((action for action in self._actions if action.dest == match["key"]), None)
            value = re.search(r"(?:Got|Given) value: (.*)", match["rest"])
            if action is not None and value is not None and (kind := _type_of(action)):
                return f"--{match['key']} takes {kind}, not {value[1].strip()!r} {see}"
            return f"--{match['key']}: {match['rest']}"
        return message


def _type_of(action: argparse.Action) -> str:
    """The action's type in plain words: ``int``, ``path or null``, ``'stop' or 'skip'``; empty if it has none."""
    kind = getattr(action, "_typehint", None) or action.type
    if kind is None:
        return ""
    if kind in (int, float, str, bool):
        return str(kind.__name__)
    text = re.sub(r"<class '(.+?)'>", r"\1", str(kind)).replace("pathlib.", "").replace("typing.", "")
    text = re.sub(r"Optional\[(.+)\]", r"\1 | None", text)
    if literal := re.search(r"Literal\[(.+?)\]", text):
        return " or ".join(literal[1].split(", "))
    return " or ".join({"Path": "path", "NoneType": "null", "None": "null"}.get(t, t) for t in text.split(" | "))
