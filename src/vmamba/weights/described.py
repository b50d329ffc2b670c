"""What a weight file says that it is, whatever network it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import CheckpointError
from vmamba.weights.files import WeightFile
from vmamba.weights.names import new_names
from vmamba.weights.recognition import Recognised, recognise

Config = TypeVar("Config")

BACKBONE = "backbone."


def said_or_recognised(
    file: WeightFile,
    source: str,
    from_dict: Callable[[Any], Config],
    recognised: Callable[[Mapping[str, Tensor], str], Recognised[Config]],
) -> Recognised[Config]:
    """The configuration in a weight file's metadata, or else what the weights are recognised as.

    Raises:
        CheckpointError: the description is broken, or there is none and the weights are not recognised.
    """
    own = file.metadata.get("config")
    if own is None:
        return recognised(file.state_dict, source)
    try:
        return Recognised(from_dict(json.loads(own)), file.metadata.get("model"), ())
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: the configuration in its metadata cannot be read: {error}") from error


def says_or_holds(file: WeightFile, part: str, weight: str) -> bool:
    """Whether a weight file's configuration has ``part``, or, where it has none, a weight is called ``weight``."""
    own = file.metadata.get("config")
    return f'"{part}"' in own if own is not None else any(name.endswith(weight) for name in file.state_dict)


def shapes_and_backbone(
    state_dict: Mapping[str, Tensor], source: str
) -> tuple[dict[str, tuple[int, ...]], Recognised[VSSMConfig]]:
    """The shapes of a dense network's weights by their new names, and its backbone recognised.

    Raises:
        CheckpointError: the backbone is no VMamba's.
    """
    renamed = {name: state_dict[key] for key, name in new_names(state_dict, BACKBONE).items()}
    inside = {name.removeprefix(BACKBONE): value for name, value in renamed.items() if name.startswith(BACKBONE)}
    shapes = {name: tuple(value.shape) for name, value in renamed.items()}
    return shapes, recognise(inside, f"{source}'s backbone")
