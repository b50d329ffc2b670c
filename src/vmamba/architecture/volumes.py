"""What makes a network over volumes, typed and checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.config import RuntimeOptions
from vmamba.architecture.values import real, switch, whole
from vmamba.errors import ConfigError, nearest
from vmamba.layers.activation import ACTIVATIONS
from vmamba.layers.ssm_init import SSM_INITS

_LISTS = ("depths", "dims", "scan_axes")


@dataclass(frozen=True)
class VolumeConfig(RuntimeOptions):
    """A network of SS3D blocks over volumes ``(b, in_chans, Z, H, W)``.

    Attributes:
        in_chans: channels of a volume.
        num_classes: classes; 0 leaves a classifier's head out.
        depths: blocks of each stage; 0 where a stage is the step to its resolution only.
        dims: channels of each stage.
        strides: by what each stage divides the sizes before it, ``(z, h, w)``; a number stands for three. The first is
            the stem's. Steps are convolutions of that size; where a stride is 1 everywhere, one of 3×3×3.
        ssm_d_state: state size ``n``, or ``"auto"``.
        ssm_ratio: ``d_inner`` over channels; 0 leaves SS3D out.
        ssm_dt_rank: rank of the step projection, or ``"auto"``.
        ssm_act_layer: SS3D's activation: silu, gelu, relu or sigmoid.
        ssm_conv: side of SS3D's depthwise convolution; below 2 there is none.
        ssm_init: v0, v1 or v2.
        scan_axes: the axes along which the blocks scan, both ways: some of 0 (z), 1 (h) and 2 (w), see
            `vmamba.scan.any_order.along`.
        share_directions: one set of scan parameters for all directions.
        mlp_ratio: the MLP's hidden width over channels; 0 leaves it out.
        drop_path_rate: stochastic depth of the last block; the blocks rise to it linearly from 0.
        selective_scan_backend, use_checkpoint: see `RuntimeOptions`.

    Raises:
        ConfigError: a value that is not legal.
        BackendError: an unknown backend name.
    """

    in_chans: int = 1
    num_classes: int = 2
    depths: tuple[int, ...] = (1, 1, 2, 1)
    dims: tuple[int, ...] = (32, 64, 128, 256)
    strides: tuple[tuple[int, int, int], ...] = ((2, 2, 2),) * 4
    ssm_d_state: int | str = 1
    ssm_ratio: float = 1.0
    ssm_dt_rank: int | str = "auto"
    ssm_act_layer: str = "silu"
    ssm_conv: int = 3
    ssm_init: str = "v0"
    scan_axes: tuple[int, ...] = (0, 1, 2)
    share_directions: bool = False
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check them."""
        super().__post_init__()
        for name in _LISTS:
            object.__setattr__(self, name, _wholes(name, getattr(self, name)))
        object.__setattr__(self, "strides", _strides(self.strides))
        for name, least in (("in_chans", 1), ("num_classes", 0), ("ssm_conv", 0)):
            value = whole(name, getattr(self, name))
            if value < least:
                raise ConfigError(f"{name} {value} must be at least {least}")
            object.__setattr__(self, name, value)
        for name in ("ssm_d_state", "ssm_dt_rank"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value == "auto" else whole(name, value, " or 'auto'"))
        for name in ("ssm_ratio", "mlp_ratio", "drop_path_rate"):
            number = real(name, getattr(self, name))
            if number < 0 or (name == "drop_path_rate" and number > 1):
                raise ConfigError(f"{name} {number} must not be negative{', nor above 1' if 'rate' in name else ''}")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "share_directions", switch("share_directions", self.share_directions))
        self._check()

    def _check(self) -> None:
        if not self.depths or min(self.depths) < 0 or min(self.dims, default=0) < 1:
            raise ConfigError(f"depths {self.depths} and dims {self.dims} need a stage, and no fewer than 0 blocks")
        if not len(self.depths) == len(self.dims) == len(self.strides):
            raise ConfigError(
                f"depths {self.depths}, dims {self.dims} and strides {self.strides} must have one entry a stage each"
            )
        axes = set(self.scan_axes)
        if not axes or len(axes) < len(self.scan_axes) or not axes <= {0, 1, 2}:
            raise ConfigError(f"scan_axes {self.scan_axes} must be distinct axes out of 0 (z), 1 (h) and 2 (w)")
        for name, legal in (("ssm_act_layer", tuple(ACTIVATIONS)), ("ssm_init", SSM_INITS)):
            value = getattr(self, name)
            if value not in legal:
                raise ConfigError(f"{name} {value!r} is unknown; legal: {', '.join(legal)}{nearest(value, legal)}")

    @property
    def stride(self) -> tuple[int, int, int]:
        """By what the sizes of a volume are divided before the last stage."""
        z, h, w = (math.prod(stage[axis] for stage in self.strides) for axis in range(3))
        return z, h, w

    def drop_path_rates(self) -> list[float]:
        """The rate of each block in order: from 0 to ``drop_path_rate`` linearly."""
        blocks = sum(self.depths)
        return [self.drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]

    def to_dict(self) -> dict[str, Any]:
        """All fields as a JSON-ready dict; ``VolumeConfig.from_dict`` takes it."""
        return {name: _listed(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VolumeConfig:
        """Make a configuration from a mapping.

        Raises:
            ConfigError: an unknown name, with the nearest legal ones, or an illegal value.
        """
        legal = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in legal:
                raise ConfigError(
                    f"{name!r} is not an option of a network over volumes{nearest(name, legal)}; legal: "
                    f"{', '.join(legal)}"
                )
        return cls(**values)

    @classmethod
    def of(cls, config: VolumeConfig | None, options: Mapping[str, Any]) -> VolumeConfig:
        """``config`` with some values changed, or without one, a new one of these values.

        Raises:
            ConfigError: ``config`` is something else; an unknown name or an illegal value.
        """
        if config is not None and not isinstance(config, VolumeConfig):
            raise ConfigError(f"give a VolumeConfig or keywords, not a {type(config).__name__}")
        return cls.from_dict({**({} if config is None else config.to_dict()), **options})


def _wholes(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} {value!r} is no list of whole numbers")
    return tuple(whole(name, one) for one in value)


def _strides(value: Any) -> tuple[tuple[int, int, int], ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"strides {value!r} is no list; give (z, h, w) for each stage")
    stages = tuple(_wholes("strides", one if isinstance(one, Iterable) else (one,) * 3) for one in value)
    if any(len(stage) != 3 or min(stage) < 1 for stage in stages):
        raise ConfigError(f"strides {stages} must be (z, h, w) for each stage, each at least 1")
    return tuple((z, h, w) for z, h, w in stages)


def _listed(value: Any) -> Any:
    return [_listed(one) for one in value] if isinstance(value, tuple) else value
