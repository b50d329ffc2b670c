"""The parser of one command: jsonargparse with short help and one-line errors."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import pairwise
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from vmamba.errors import ConfigError, nearest
from vmamba.typed import type_in_words

#: Earlier spellings of options, for commands that have the later one.
SYNONYMS = {"size": "image_size", "batch": "batch_size"}


class _Help(DefaultHelpFormatter):
    """Says the type in the option's placeholder, and a default only where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)  # type: ignore[no-untyped-call]

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = type_in_words(action)
        if " or " in kind:
            return f"{{{','.join(kind.replace(chr(39), '').split(' or '))}}}"
        kind = kind.upper()
        return kind.replace(" ", "") if kind else "VALUE"

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
            self._describe("--print_config", "Print what would be used and where it comes from, as YAML.")

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

    def normalised(self, words: Sequence[str]) -> list[str]:
        """The words with each option in this parser's spelling: dashes are underscores, ``size`` is ``image_size``."""
        known = {option for action in self._actions for option in action.option_strings}
        kept = list(words)
        for i, word in enumerate(kept):
            if word == "--":
                break
            name, sign, value = word.partition("=")
            if not name.startswith("--") or name in known:
                continue
            spelt = "--" + name[2:].replace("-", "_")
            spelt = f"--{SYNONYMS.get(spelt[2:], spelt[2:])}"
            if spelt in known or spelt.split(".")[0] in known:  # --model_options.NAME is one of model_options
                kept[i] = f"{spelt}{sign}{value}"
        return kept

    def parse(
        self,
        words: Sequence[str],
        defaults: Callable[[Namespace, Namespace], dict[str, Any]] | None = None,
        given: Callable[[Namespace], None] | None = None,
    ) -> Namespace:
        """Parse ``words`` and build the dataclasses among the options.

        Args:
            words: the command line after the command's name.
            defaults: called with what was parsed and with the part of it that the user gave; returns defaults
                that depend on it.
            given: called with what the user gave, to which it may add; the result then holds that alone.

        Raises:
            ConfigError: an option, value or file that cannot be used.
        """
        self.usage = self._short_usage()
        self._files = _option_values(words, "--config")
        with self._mistakes():
            values = self.parse_args(words)
            if defaults is not None:
                self.set_defaults(defaults(values, self.parse_args(words, defaults=False)))
                values = self.parse_args(words)
            if given is not None:
                values = self.parse_args(words, defaults=False)
                given(values)
            built: Namespace = self.instantiate(values)
            return built

    def described(
        self, words: Sequence[str], defaults: Callable[[Namespace, Namespace], dict[str, Any]] | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain values that ``words`` make, and by dotted name where each comes from; what is required may lack.

        Raises:
            ConfigError: as `parse`.
        """
        self._files = _option_values(words, "--config")
        origins: dict[str, str] = {}
        with self._mistakes():
            if defaults is not None and all(action.dest in self._printed(words, False) for action in self._needed()):
                own = defaults(self.parse_args(words), self.parse_args(words, defaults=False))
                self.set_defaults(own)
                origins = dict.fromkeys(own, "the run's own")
            values, given = self._printed(words), self._printed(words, False)
        return values, origins | dict.fromkeys(_dotted(given), "given")

    def _needed(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.required]

    def _printed(self, words: Sequence[str], defaults: bool = True) -> dict[str, Any]:
        """What jsonargparse prints as the configuration, which may lack what is required."""
        import yaml

        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            self.parse_args([*words, "--print_config"], defaults=defaults)
        values: dict[str, Any] = yaml.safe_load(text.getvalue()) or {}
        return values if defaults else {name: value for name, value in values.items() if value is not None}

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        """Turn what the parser raises into `ConfigError`."""
        try:
            yield
        except (ArgumentError, argparse.ArgumentError) as error:
            raise ConfigError(self._readable(str(error))) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._source()} is not text in UTF-8") from error

    def _source(self) -> str:
        """The configuration file, as messages call it."""
        return self._files[0] if len(self._files) == 1 else "the configuration"

    def _short_usage(self) -> str:
        positionals = [action for action in self._actions if not action.option_strings]
        return " ".join([self.prog, *map(_positional, positionals), "[options]"])

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
            return f"{self._source()}: {name!r} is not an option of `{self.prog}`{nearest(name, keys)} {see}"
        if match := re.match(r"the following arguments are required: (.*)", message):
            needed = ", ".join(self._called(name) for name in match[1].split(", "))
            return f"`{self.prog}` needs {needed} {see}"
        if match := re.match(r"Problems parsing config: (.*)", message, re.DOTALL):
            return f"{self._source()} is not YAML: {match[1].replace('<unicode string>', 'the file')}"
        if match := re.match(r"Unexpected config: (.*)", message, re.DOTALL):
            return f"{self._source()} holds no options, but {match[1].strip()[:40]!r} {see}"
        if match := re.match(r'Parser key "(?P<key>.+?)":\s+(?P<rest>.*)', message, re.DOTALL):
            return f"--{match['key']}{self._reason(match['key'], match['rest'])} {see}"
        return re.sub(r"^argument (-.*?): ", r"\1: ", message)

    def _reason(self, key: str, text: str) -> str:
        if match := re.match(r"Unable to load config '(.*)'", text):
            return f": {match[1]!r} is no YAML file"
        action = next((action for action in self._actions if action.dest == key), None)
        value = re.search(r"(?:Got|Given) value: (.*)", text)
        if action is not None and value is not None and (kind := type_in_words(action)):
            return f" takes {kind}, not {value[1].strip()!r}"
        return f": {text}"

    def _called(self, dest: str) -> str:
        action = next((action for action in self._actions if action.dest == dest), None)
        if action is None or action.option_strings:
            return f"--{dest}"
        return action.metavar if isinstance(action.metavar, str) else dest.upper()


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")


def _positional(action: argparse.Action) -> str:
    word = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return {"+": f"{word} [{word} ...]", "*": f"[{word} ...]", "?": f"[{word}]"}.get(str(action.nargs), word)


def _option_values(words: Sequence[str], option: str) -> list[str]:
    spaced = [value for word, value in pairwise(words) if word == option]
    return spaced + [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
