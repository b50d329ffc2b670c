"""What processes do in these tests; each is called in a fresh process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.launch import prepare

from vmamba.cli import main
from vmamba.data import DataConfig
from vmamba.data.datasets import folder
from vmamba.errors import VMambaError
from vmamba.tasks.classification.objective import CrossEntropy
from vmamba.tasks.detection.objective import DetectionLoss
from vmamba.tasks.segmentation.objective import PixelLoss
from vmamba.train.loop import finetune
from vmamba.train.loop import trainer as loop
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig


def command(*words: str) -> int:
    """The command line; in batch DIE process 1 is killed, in batch ASK asked to end, where those are set."""
    seen: list[None] = []

    def struck(plain: Callable[..., Any]) -> Callable[..., Any]:
        def loss(self: Any, model: Any, batch: Any) -> Any:
            seen.append(None)
            for name, number in (("DIE", signal.SIGKILL), ("ASK", signal.SIGTERM)):
                if os.environ["RANK"] == "1" and str(len(seen)) == os.environ.get(name):
                    os.kill(os.getpid(), number)
            return plain(self, model, batch)

        return loss

    for kind in (CrossEntropy, PixelLoss, DetectionLoss):
        kind.loss = struck(kind.loss)  # type: ignore[attr-defined]
    return main(words)


def elastic_command(die: str, *words: str) -> int:
    """The same in a worker of torchrun, which sets the rest of the environment itself."""
    prepare({"DIE": die})
    return command(*words)


def loud_training(images: str, run: str, init: str) -> None:
    """Train an epoch, with all that is to happen once said aloud."""

    def loud(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            print("did", name, "in", os.environ["RANK"], flush=True)
            return plain(*values)

        return call

    for place, name in (
        (folder, "load"), (folder, "find_faults"), (folder.FileImages, "fingerprint"), (finetune, "init_file"),
    ):  # fmt: skip
        setattr(place, name, loud(name, getattr(place, name)))
    loop.init_file = finetune.init_file
    try:
        train(
            TrainConfig(
                model_options={"dims": [8, 16], "depths": [1, 1]},
                data=DataConfig("folder", Path(images), image_size=16),
                epochs=1,
                batch_size=5,
                grad_accumulation=2,
                num_workers=0,
                device="cpu",
                output=Path(run),
                init=init or None,
            )
        )
    except VMambaError as error:
        print("refused in", os.environ["RANK"], type(error).__name__, error, flush=True)
