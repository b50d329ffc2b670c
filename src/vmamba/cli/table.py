"""The table of commands."""

from __future__ import annotations

from collections.abc import Mapping

from vmamba.cli.app import APP
from vmamba.cli.bench import BENCH
from vmamba.cli.frame import Command, CommandGroup
from vmamba.cli.info import BACKENDS, MODELS, WARM
from vmamba.cli.look import CAM, ERF, FLOPS, SCANMAP
from vmamba.cli.migrate import MIGRATE
from vmamba.cli.run import RUN
from vmamba.cli.runs import DEMO, DETECT, EVAL, EXPORT, PREDICT, SEGMENT, TRAIN
from vmamba.cli.weights import WEIGHTS

COMMANDS: Mapping[str, Command | CommandGroup] = {
    "demo": DEMO,
    "train": TRAIN,
    "eval": EVAL,
    "predict": PREDICT,
    "segment": SEGMENT,
    "detect": DETECT,
    "export": EXPORT,
    "scanmap": SCANMAP,
    "cam": CAM,
    "erf": ERF,
    "flops": FLOPS,
    "app": APP,
    "models": MODELS,
    "weights": WEIGHTS,
    "backends": BACKENDS,
    "bench": BENCH,
    "warm": WARM,
    "migrate": MIGRATE,
    "run": RUN,
}
