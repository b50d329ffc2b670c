"""``vmamba weights``: list, get, convert and inspect weight files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, CommandGroup, add_paths, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


def _weights_list_options(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _weights_list(values: Namespace) -> int:
    from vmamba.zoo.weight_files import weights_rows, weights_table

    rows = weights_rows()
    if values.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        console().print(weights_table(rows))
    return 0


def _weights_get_options(parser: CommandParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="A model's name, see `vmamba weights list`.")


def _weights_get(values: Namespace) -> int:
    from vmamba.zoo.weight_files import get_weights

    for path in get_weights(values.names):
        print(path)
    return 0


_KEY = "Entry of a training checkpoint, such as model_ema; by default model, then state_dict, then model_ema."


def _weights_convert_options(parser: CommandParser) -> None:
    add_paths(parser, "source", "SOURCE", "Weight file.")
    add_paths(parser, "destination", "DESTINATION", "New file: .safetensors, or .pth, .pt, .bin or .ckpt.")
    parser.add_argument("--key", help=_KEY)


def _weights_convert(values: Namespace) -> int:
    from vmamba.zoo.weight_files import convert_weights

    count = convert_weights(values.source, values.destination, values.key)
    print(f"wrote {values.destination} ({count} tensors)")
    return 0


def _weights_inspect_options(parser: CommandParser) -> None:
    add_paths(parser, "file", "FILE", "Weight file.")
    parser.add_argument("--key", help=_KEY)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _weights_inspect(values: Namespace) -> int:
    from vmamba.zoo.weight_files import inspect_weights, print_inspection

    inspection = inspect_weights(values.file, values.key)
    if values.json:
        print(json.dumps(inspection.to_dict(), indent=2))
    else:
        print_inspection(inspection, console())
    return 0


WEIGHTS = CommandGroup(
    "List, get, convert and inspect weight files.",
    {
        "list": Command("List the released weights.", _weights_list_options, _weights_list, config_file=False),
        "get": Command(
            "Download released weights into torch hub's cache.", _weights_get_options, _weights_get, config_file=False
        ),
        "convert": Command(
            "Convert weights between PyTorch and safetensors, bit by bit.",
            _weights_convert_options,
            _weights_convert,
            config_file=False,
        ),
        "inspect": Command(
            "Tell what a weight file holds and which model it fits.",
            _weights_inspect_options,
            _weights_inspect,
            config_file=False,
        ),
    },
)
