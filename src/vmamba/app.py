"""The table of commands."""

from __future__ import annotations

from collections.abc import Mapping

from vmamba.commands.bench import BENCH
from vmamba.commands.frame import Command, CommandGroup
from vmamba.commands.info import BACKENDS, MODELS
from vmamba.commands.migrate import MIGRATE
from vmamba.commands.runs import DEMO, EVAL, EXPORT, PREDICT, TRAIN
from vmamba.commands.weights import WEIGHTS

COMMANDS: Mapping[str, Command | CommandGroup] = {
    "demo": DEMO,
    "train": TRAIN,
    "eval": EVAL,
    "predict": PREDICT,
    "export": EXPORT,
    "models": MODELS,
    "weights": WEIGHTS,
    "backends": BACKENDS,
    "bench": BENCH,
    "migrate": MIGRATE,
}
