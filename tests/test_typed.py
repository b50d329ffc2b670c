"""Mistakes in files and calls are told in their own words, whatever parses them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from vmamba.errors import ConfigError
from vmamba.train.folder.run_folder import config_from_dict
from vmamba.train.settings.config import TrainConfig
from vmamba.typed import type_in_words, typed


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr": "fast"}, "lr takes float, not 'fast'"),
        ({"epochs": 2.5}, "epochs takes int, not 2.5"),
        ({"optimizer": "sgd"}, "optimizer takes 'adamw' or 'muon', not 'sgd'"),  # a choice, or None
        ({"data": {"unreadable": "ignore"}}, "data.unreadable takes 'stop' or 'skip', not 'ignore'"),  # a choice
        ({"data": {"image_size": [1, 2]}}, "data.image_size takes int, not [1, 2]"),
        ({"data.image_size": "big"}, "data.image_size takes int, not 'big'"),
        ({"data": {"mean": ["a"]}}, "data.mean takes [float, ...], not ['a']"),
        ({"augmentation": {"crop_scale": 1}}, "augmentation.crop_scale takes [float, float], not 1"),
        ({"output": 3}, "output takes path, not 3"),
        ({"model_options": 3}, "model_options takes {name: value}, not 3"),
        ({"data": 3}, "data takes a mapping of its fields, not 3"),
        ({"augmentation": None}, "augmentation takes a mapping of its fields, not None"),
        ({"data": "x"}, "data takes a mapping of its fields, not 'x'"),
        ({"data": {"image_size.x": 3}}, ""),
        ({True: 1}, "Key must be a string, got: True"),
        ({"help": 1}, "there is no 'help'"),
        ({"rate": 1}, "there is no 'rate'"),
        ({"data": {"datset": "x"}}, "there is no 'data.datset'; did you mean 'data.dataset'"),
    ],
)
def test_a_mistake_is_one_line(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(TrainConfig, values, "recipe mine.yaml")
    message = str(error.value)
    assert message.startswith(f"recipe mine.yaml: {told}")
    assert "\n" not in message


def test_a_stored_configuration_too() -> None:
    for values, told in (
        ({"data": 3}, "data takes a mapping of its fields, not 3"),
        ({"augmentation": None}, "augmentation takes a mapping of its fields, not None"),
        ({True: 1}, "Key must be a string, got: True"),
        ({"optimizer": "adamw", "optimizer.x": 1}, "there is no 'optimizer.x'"),
    ):
        with pytest.raises(ConfigError, match=f"config.yaml: {told}"):
            config_from_dict(values, "config.yaml")  # type: ignore[arg-type]
    given = {"task_options": {"a": 1}, "task_options.b": 2, "data": {"dataset": "marks"}, "data.seed": 3}
    kept = copy.deepcopy(given)
    with pytest.raises(ConfigError, match="task_options"):
        config_from_dict(given)
    assert given == kept


def test_a_recipe_may_say_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data.image_size: 64\ndata: {dataset: digits}\naugmentation.hflip: 0.5\n")
    config = TrainConfig(recipe=str(path)).resolved()
    assert (config.data.image_size, config.data.dataset, config.augmentation.hflip) == (64, "digits", 0.5)


def test_words_of_types() -> None:
    class Action:
        def __init__(self, kind: object) -> None:
            self._typehint = kind

    for kind, words in (
        (tuple[Path, ...], "[path, ...]"),
        (Optional[Union[float, Literal["alternate"]]], "float or 'alternate'"),  # noqa: UP007, UP045
        (float | Literal["alternate"] | None, "float or 'alternate'"),
        (Literal["no", "yes"] | bool, "'no' or 'yes'"),
        (dict[str, Any], "{name: value}"),
        (list[int], "[int]"),
    ):
        assert type_in_words(Action(kind)) == words  # type: ignore[arg-type]


def test_what_is_right_gets_its_types() -> None:
    checked = typed(TrainConfig, {"lr": 1, "augmentation": {"crop_scale": [0.5, 1]}, "optimizer": "muon"}, "a call")
    assert checked["lr"] == 1.0
    assert checked["augmentation"]["crop_scale"] == (0.5, 1.0)
    assert checked["optimizer"] == "muon"
