"""What anybody may need of a training run's folder: the names of its files, and the images it was trained on.

`vmamba.train.folder.run_folder` writes them; evaluation and export read them, and may not know how training works.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmamba.data import DataConfig
from vmamba.errors import ConfigError
from vmamba.typed import typed


class RunFiles:
    """Where the files of one run lie that others than training read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"

    @property
    def weights(self) -> Path:
        """The best weights, or the last where there are no best yet."""
        return self.best if self.best.is_file() else self.last

    def read_settings(self) -> Mapping[str, Any]:
        """What ``config.yaml`` holds.

        Raises:
            ConfigError: it is missing or broken.
        """
        import yaml

        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {self.config}: {error}; is {self.path} a run's folder?") from error
        if not isinstance(values, Mapping):
            raise ConfigError(f"{self.config} holds a {type(values).__name__}, want a mapping of fields")
        return values


def trained_on(weights: Path) -> DataConfig | None:
    """The images of the run that ``weights`` is (its folder) or lies in (a file); None outside of a run.

    Raises:
        ConfigError: the run's ``config.yaml`` is broken.
    """
    files = RunFiles(weights if weights.is_dir() else weights.parent)
    if not files.config.is_file():
        return None
    data = files.read_settings().get("data", {})
    if not isinstance(data, Mapping):
        raise ConfigError(f"{files.config}: data holds a {type(data).__name__}, want a mapping of fields")
    return DataConfig(**typed(DataConfig, data, str(files.config)))


def unknown_images(weights: Path) -> ConfigError:
    """The error for weights outside of a run where no images were named."""
    if not weights.exists():
        return ConfigError(
            f"{weights} comes without images: name some with data.data_dir, such as ImageNet's val folder"
        )
    return ConfigError(
        f"{weights} does not lie in a run's folder, so the images it was trained on are not known: "
        "name some with data.dataset and data.data_dir"
    )
