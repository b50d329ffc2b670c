"""What makes a VSSM, typed and checked when it is made: the network itself, and how one wants it to run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vmamba.architecture.values import real, switch, whole
from vmamba.errors import ConfigError, nearest
from vmamba.layers.activation import ACTIVATIONS
from vmamba.layers.forward_type import ForwardType
from vmamba.layers.norm import NORMS
from vmamba.layers.ssm_init import SSM_INITS, check_mamba2_init
from vmamba.scan.dispatch import check_name

_logger = logging.getLogger("vmamba")


@dataclass(frozen=True)
class Architecture:
    """The network: what its weights belong to. Words may be in any case; ``dims=d`` means ``d, 2d, 4d, …``.

    Attributes:
        patch_size: ``p``, side of a patch in pixels. ``patchembed_version="v1"`` steps ``p`` pixels a token;
            ``"v2"`` steps ``(p/2)²``: 4 for 4, but 1 for 2 and 16 for 8. Half of 4 is ``"v1"`` with 2.
        in_chans: image channels.
        num_classes: classes of the head; 0 leaves the head out.
        depths: blocks of each stage.
        dims: channels of each stage.
        ssm_d_state: state size ``n``, or ``"auto"``.
        ssm_ratio: ``d_inner`` over channels; 0 leaves SS2D out.
        ssm_dt_rank: rank of the step projection, or ``"auto"``.
        ssm_act_layer: SS2D's activation: silu, gelu, relu or sigmoid.
        ssm_conv: side of SS2D's depthwise convolution; below 2 there is none.
        ssm_conv_bias: whether it has a bias.
        ssm_drop_rate: dropout after SS2D.
        ssm_init: v0, v1 or v2; forward type m0 has v1 and v2.
        forward_type: upstream's string, see `ForwardType`.
        mlp_ratio: the MLP's hidden width over channels; 0 leaves it out.
        mlp_act_layer: its activation.
        mlp_drop_rate: its dropout.
        gmlp: gated MLP.
        drop_path_rate: stochastic depth of the last block; the blocks rise to it linearly from 0.
        patch_norm: norms in the patch embedding.
        norm_layer: ln, ln2d (the same values) or bn.
        downsample_version: v1, v2 or v3.
        patchembed_version: v1 or v2.
        posembed: learned positional embedding.
        imgsize: image side that ``pos_embed`` is made for.
        post_norm: norm the branches' outputs instead of their inputs.

    Raises:
        ConfigError: a value that is not legal.
    """

    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    depths: tuple[int, ...] = (2, 2, 9, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    ssm_d_state: int | str = 16
    ssm_ratio: float = 2.0
    ssm_dt_rank: int | str = "auto"
    ssm_act_layer: str = "silu"
    ssm_conv: int = 3
    ssm_conv_bias: bool = True
    ssm_drop_rate: float = 0.0
    ssm_init: str = "v0"
    forward_type: str = "v2"
    mlp_ratio: float = 4.0
    mlp_act_layer: str = "gelu"
    mlp_drop_rate: float = 0.0
    gmlp: bool = False
    drop_path_rate: float = 0.1
    patch_norm: bool = True
    norm_layer: str = "ln"
    downsample_version: str = "v2"
    patchembed_version: str = "v1"
    posembed: bool = False
    imgsize: int = 224
    post_norm: bool = False

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check them."""
        for field in dataclasses.fields(Architecture):
            object.__setattr__(self, field.name, self._typed(field.name, type(field.default)))
        self._check()

    def _typed(self, name: str, kind: type) -> Any:
        """A field's value in its canonical form; its default tells the type."""
        value = getattr(self, name)
        if name in ("depths", "dims"):
            if name == "dims" and not isinstance(value, Iterable):
                first = whole(name, value)
                return tuple(first * 2**stage for stage in range(len(self.depths)))
            if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                raise ConfigError(f"{name} {value!r} is no list; give a whole number for each stage")
            return tuple(whole(name, one) for one in value)
        if name in ("ssm_d_state", "ssm_dt_rank"):
            if value == "auto":
                return value
            # Upstream's YAML files have words here.
            digits = isinstance(value, str) and value.isdecimal()
            return whole(name, int(value) if digits else value, " or 'auto'")
        if kind is int:
            return whole(name, value)
        if kind is float:
            return real(name, value)
        if kind is bool:
            return switch(name, value)
        if not isinstance(value, str):
            raise ConfigError(f"{name} {value!r} is not a word")
        return value if name == "forward_type" else value.lower()

    def _check(self) -> None:
        if not self.depths or min(self.depths) < 0:
            raise ConfigError(f"depths {self.depths} must name at least one stage and no negative number of blocks")
        if len(self.dims) != len(self.depths):
            raise ConfigError(f"dims {self.dims} and depths {self.depths} must have one entry a stage each")
        for name, least in (("patch_size", 1), ("in_chans", 1), ("num_classes", 0), ("imgsize", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least {least}")
        if min(self.dims) < 1:
            raise ConfigError(f"dims {self.dims} must be positive")
        for name in ("ssm_drop_rate", "mlp_drop_rate", "drop_path_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} must lie between 0 and 1")
        for name in ("ssm_ratio", "mlp_ratio"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative; 0 leaves the branch out")
        for name, legal in (
            ("ssm_act_layer", tuple(ACTIVATIONS)),
            ("mlp_act_layer", tuple(ACTIVATIONS)),
            ("ssm_init", SSM_INITS),
            ("norm_layer", NORMS),
            ("downsample_version", ("v1", "v2", "v3")),
            ("patchembed_version", ("v1", "v2")),
        ):
            value = getattr(self, name)
            if value not in legal:
                raise ConfigError(f"{name} {value!r} is unknown; legal: {', '.join(legal)}{nearest(value, legal)}")
        if ForwardType.parse(self.forward_type).family == "m0" and self.ssm_ratio:
            check_mamba2_init(self.ssm_init)

    @property
    def stem_stride(self) -> int:
        """Pixels of the image, a side, for each place of the first stage's map."""
        return self.patch_size if self.patchembed_version == "v1" else (self.patch_size // 2) ** 2

    def drop_path_rates(self) -> list[float]:
        """The rate of each block in order: from 0 to ``drop_path_rate`` linearly."""
        blocks = sum(self.depths)
        return [self.drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]


@dataclass(frozen=True)
class RuntimeOptions:
    """How a network runs here: nothing of it is stored with weights, which other machines use.

    Attributes:
        selective_scan_backend: None, oflex, mamba or torch.
        use_checkpoint: recompute blocks in backward instead of keeping activations.

    Raises:
        BackendError: an unknown backend name.
    """

    selective_scan_backend: str | None = None
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        """Check the name; whether the backend can run is asked when it is called."""
        check_name(self.selective_scan_backend)
        object.__setattr__(self, "use_checkpoint", switch("use_checkpoint", self.use_checkpoint))


#: The names of `RuntimeOptions`.
RUNTIME = tuple(field.name for field in dataclasses.fields(RuntimeOptions))


@dataclass(frozen=True)
class VSSMConfig(RuntimeOptions, Architecture):
    """Every keyword of a VSSM: the fields of `Architecture` and of `RuntimeOptions`.

    Raises:
        ConfigError: a value that is not legal.
        BackendError: an unknown backend name.
    """

    def __post_init__(self) -> None:
        """Bring values into their canonical form and check them."""
        Architecture.__post_init__(self)
        RuntimeOptions.__post_init__(self)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names that `from_dict` takes."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VSSMConfig:
        """Make a configuration from a mapping, such as a yacs node or a parsed JSON file.

        Raises:
            ConfigError: an unknown name, with the nearest legal ones.
        """
        legal = cls.field_names()
        if "ssm_rank_ratio" in values:
            values = {name: value for name, value in values.items() if name != "ssm_rank_ratio"}
            _logger.warning(
                "ssm_rank_ratio is ignored: upstream takes it too and never used it; ssm_dt_rank is the rank"
            )
        for name in values:
            if name not in legal:
                raise ConfigError(
                    f"{name!r} is not an option of a VSSM{nearest(name, legal)}; legal: {', '.join(legal)}"
                )
        return cls(**values)

    @classmethod
    def of(cls, config: VSSMConfig | None, options: Mapping[str, Any]) -> VSSMConfig:
        """``config`` with some values changed, or without one, a new one of these values.

        Raises:
            ConfigError: ``config`` is something else; an unknown name or an illegal value.
        """
        if config is None:
            return cls.from_dict(options)
        if not isinstance(config, VSSMConfig):
            raise ConfigError(f"give a VSSMConfig or keywords, not a {type(config).__name__}")
        return config.replace(**options) if options else config

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> VSSMConfig:
        """As `from_dict`, for what was stored with weights: how the network once ran, which files of the first version
        say too, is left out.
        """
        return cls.from_dict({name: value for name, value in values.items() if name not in RUNTIME})

    def to_dict(self) -> dict[str, Any]:
        """The architecture as a JSON-ready dict, as it is stored with weights; `from_dict` takes it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Architecture)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def replace(self, **changes: Any) -> VSSMConfig:
        """A copy with some values changed.

        Raises:
            ConfigError: an unknown name or an illegal value.
        """
        return self.from_dict({**{name: getattr(self, name) for name in self.field_names()}, **changes})
