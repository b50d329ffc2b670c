"""Mistakes in files and calls are told in their own words, whatever parses them."""

from __future__ import annotations

import pytest

from vmamba.errors import ConfigError
from vmamba.train.settings.config import TrainConfig
from vmamba.typed import typed


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


def test_what_is_right_gets_its_types() -> None:
    checked = typed(TrainConfig, {"lr": 1, "augmentation": {"crop_scale": [0.5, 1]}, "optimizer": "muon"}, "a call")
    assert checked["lr"] == 1.0
    assert checked["augmentation"]["crop_scale"] == (0.5, 1.0)
    assert checked["optimizer"] == "muon"
