"""Commands that tell what there is: models, backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


def _models_options(parser: CommandParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="Part of a name, or a pattern such as '*tiny*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _models(values: Namespace) -> int:
    from vmamba.zoo.table import model_rows, models_table

    rows = model_rows(values.pattern)
    if values.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        console().print(models_table(rows))
    return 0


def _backends_options(parser: CommandParser) -> None:
    parser.add_argument("--check", action="store_true", help="Measure error against the reference, speed and memory.")
    parser.add_argument("--json", type=Path, help="File for all figures.")


def _backends(values: Namespace) -> int:
    from vmamba.bench.backends.report import run_backends

    return run_backends(values.check, values.json, console())


def _warm_options(parser: CommandParser) -> None:
    parser.add_argument("model", help="Name of a model.")
    parser.add_argument("--batch_size", type=int, default=128, help="Images of a batch.")
    parser.add_argument("--image_size", type=int, default=224, help="Side of the images, pixels.")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16", help="Of the activations."
    )
    parser.add_argument("--inference", action="store_true", help="Leave out what only training needs.")


def _warm(values: Namespace) -> int:
    import torch

    from vmamba.inference.warm import warm
    from vmamba.zoo import create_model

    images = (values.batch_size, 3, values.image_size, values.image_size)
    count = warm(create_model(values.model), images, getattr(torch, values.dtype), training=not values.inference)
    console().print(f"{values.model}: {count} kernels compiled for {torch.cuda.get_device_name()}")
    return 0


MODELS = Command("List the named models.", _models_options, _models, config_file=False)
BACKENDS = Command(
    "Tell which scan backends run on this machine, and why not.", _backends_options, _backends, config_file=False
)
WARM = Command("Compile the GPU kernels of a model ahead of use.", _warm_options, _warm, config_file=False)
