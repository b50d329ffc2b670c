"""What the blocks over maps of any number of axes share: a residual token mixer and a residual MLP, both with norms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmamba._torch import is_plain_module
from vmamba.functional import gpu
from vmamba.layers.basic import DropPath, Pointwise
from vmamba.layers.mixer import ScanMixer, check_map
from vmamba.layers.mlp import GatedMlp, Mlp
from vmamba.layers.norm import make_norm, normed
from vmamba.layers.ss2d import SS2D
from vmamba.layers.ss3d import SS3D
from vmamba.scan.dispatch import ambient, backend


class MixerBlock(nn.Module):
    """``x + mixer(norm(x))``, then ``x + MLP(norm(x))``; its subclasses say which mixer.

    Args:
        hidden_dim: channels ``c``.
        make_mixer: builds the token mixer, over ``(b, *sizes, c)``; None leaves its branch out.
        drop_path, norm_layer, channel_first, mlp_ratio, mlp_act_layer, mlp_drop_rate, gmlp, use_checkpoint, post_norm:
            see `VSSBlock`.
    """

    #: The map's axes, for messages.
    SIZES: ClassVar[str]

    def __init__(
        self,
        hidden_dim: int,
        make_mixer: Callable[[], ScanMixer] | None,
        drop_path: float,
        norm_layer: str | Callable[[int], nn.Module],
        channel_first: bool,
        mlp_ratio: float,
        mlp_act_layer: str | Callable[[], nn.Module],
        mlp_drop_rate: float,
        gmlp: bool,
        use_checkpoint: bool,
        post_norm: bool,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.ssm_branch = make_mixer is not None
        self.mlp_branch = mlp_ratio > 0
        self.use_checkpoint = use_checkpoint
        self.post_norm = post_norm
        self.channel_first = channel_first
        if make_mixer is not None:
            self.norm = make_norm(norm_layer, hidden_dim, channel_first)
            self.op = make_mixer()
        self.drop_path = DropPath(drop_path)
        if self.mlp_branch:
            self.norm2 = make_norm(norm_layer, hidden_dim, channel_first)
            mlp = GatedMlp if gmlp else Mlp
            self.mlp = mlp(hidden_dim, int(hidden_dim * mlp_ratio), mlp_act_layer, mlp_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, *sizes, c) → (b, *sizes, c)``, or ``(b, c, *sizes)`` both where ``channel_first``."""
        if not isinstance(x, torch.fx.Proxy):  # symbolic tracing has no values to look at
            check_map(type(self).__name__, x, self.SIZES, self.hidden_dim, self.channel_first)
        if self.channel_first:
            x = x.movedim(1, -1)
        if self.use_checkpoint and self.training:
            # A compiled graph keeps its backend by itself.
            kept: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _keep_backend}
            x = checkpoint(self._forward, x, use_reentrant=False, **kept)
        else:
            x = self._forward(x)
        return x.movedim(-1, 1) if self.channel_first else x

    def _forward(self, x: Tensor) -> Tensor:
        if self.ssm_branch:
            x = x + self._branch(x, self.norm, self.op)
        if self.mlp_branch:
            x = x + self._branch(x, self.norm2, self.mlp)
        return x

    def _branch(self, x: Tensor, norm: nn.Module, module: nn.Module) -> Tensor:
        y: Tensor = self.drop_path(norm(module(x)) if self.post_norm else module(_norm_for(module, norm, x)))
        return y


def _norm_for(module: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, on a GPU in what autocast converts it to next, if ``module`` begins with a product of ours.

    Autocast has norms write float32, which that product would read again to convert it.
    """
    dtype = gpu.autocast_dtype(x) if gpu.takes_kernels(x) else None
    if dtype is None or not _begins_with_product(module):
        y: Tensor = norm(x)
        return y
    return normed(norm, x, dtype)


def _begins_with_product(module: nn.Module) -> bool:
    if is_plain_module(module, SS2D) or is_plain_module(module, SS3D):
        return is_plain_module(module.in_proj, Pointwise)  # type: ignore[arg-type]
    if is_plain_module(module, Mlp) or is_plain_module(module, GatedMlp):
        return is_plain_module(module.fc1, Pointwise)  # type: ignore[arg-type]
    return False


class _SameBackend:
    """Enters the backend that was asked for when this was made, as often as one likes and on any thread."""

    def __init__(self) -> None:
        self._name = ambient()
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._entered.append(backend(self._name))
        self._entered[-1].__enter__()

    def __exit__(self, *_: object) -> None:
        self._entered.pop().__exit__(None, None, None)


def _keep_backend() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a forward pass and for its recomputation, which comes outside of what surrounds the forward pass."""
    return nullcontext(), _SameBackend()
