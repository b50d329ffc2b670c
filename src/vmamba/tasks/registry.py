"""The table of tasks by name."""

from __future__ import annotations

from vmamba.errors import ConfigError, nearest
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.detection.task import Detection
from vmamba.tasks.multilabel.task import MultiLabel
from vmamba.tasks.protocol import Task
from vmamba.tasks.segmentation.task import Segmentation

#: What the option ``task`` and the metadata of weight files may name.
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classification, MultiLabel, Segmentation, Detection)}

#: Weight files and runs of before there was more than one task do not name theirs.
DEFAULT = Classification.name


def task_type(name: str) -> type[Task]:
    """The task called ``name``.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if name not in TASKS:
        raise ConfigError(f"task={name!r} is unknown; legal: {', '.join(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]
