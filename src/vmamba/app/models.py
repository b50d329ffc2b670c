"""The models that a page offers, loaded when they are first chosen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from vmamba.errors import ConfigError
from vmamba.tasks.run_files import RunFiles
from vmamba.tasks.trained import Trained, open_trained
from vmamba.weights import OFFICIAL

#: How many stay in memory.
_KEPT = 2


class Models:
    """The models that may be chosen, by what they are called. Safe to use from several threads.

    Args:
        sources: run folders, weight files, files of `vmamba export`, and names of models with released weights.
        device: where they compute: auto, cpu, cuda, mps or xpu.

    Raises:
        ConfigError: no source.
    """

    def __init__(self, sources: Sequence[str], device: str = "auto") -> None:
        if not sources:
            raise ConfigError(
                "there is no model to show: give run folders, weight files or names of released weights, or train one "
                "with `vmamba demo`"
            )
        self.names = tuple(dict.fromkeys(sources))
        self._device = device
        self._loaded: OrderedDict[str, tuple[Trained, torch.device]] = OrderedDict()
        self._loading = threading.Lock()
        #: Held by whoever runs a model: looking inside one changes it for the time.
        self.running = threading.Lock()

    def open(self, name: str) -> tuple[Trained, torch.device]:
        """A model, ready to run, and where it computes.

        Raises:
            ConfigError: it is none of those offered.
            CheckpointError: it cannot be loaded.
        """
        if name not in self.names:
            raise ConfigError(f"{name!r} is none of the models of this page: {', '.join(self.names)}")
        with self._loading:
            if name not in self._loaded:
                trained, device = open_trained(Path(name), self._device)
                trained.model.to(device)
                self._loaded[name] = trained, device
                while len(self._loaded) > _KEPT:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]


def found_sources(folder: Path) -> list[str]:
    """The runs right below a folder, the youngest first, and the released weights that lie in the cache."""
    runs = [path for path in folder.iterdir() if RunFiles(path).weights.is_file()] if folder.is_dir() else []
    runs.sort(key=lambda path: RunFiles(path).weights.stat().st_mtime, reverse=True)
    return [*map(str, runs), *(name for name, weights in OFFICIAL.items() if weights.path.is_file())]
