"""The VSS block (arXiv 2401.10166, §4.3): a residual SS2D and a residual MLP, each behind a norm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmamba._torch import is_plain_module
from vmamba.errors import InputError
from vmamba.functional import gpu
from vmamba.layers.basic import DropPath, Pointwise
from vmamba.layers.mlp import GatedMlp, Mlp
from vmamba.layers.norm import make_norm, normed
from vmamba.layers.ss2d import SS2D
from vmamba.scan.dispatch import ambient, backend


class VSSBlock(nn.Module):
    """``x + SS2D(norm(x))``, then ``x + MLP(norm(x))``, with upstream's argument names.

    Args:
        hidden_dim: channels ``c``.
        drop_path: stochastic depth's rate of both branches.
        norm_layer: ``"ln"``, ``"ln2d"``, ``"bn"`` or a class.
        channel_first: take and return ``(b, c, h, w)`` instead of ``(b, h, w, c)``.
        ssm_d_state: `SS2D`'s ``d_state``.
        ssm_ratio: its ``ssm_ratio``; 0 leaves the SS2D branch out.
        ssm_dt_rank: its ``dt_rank``.
        ssm_act_layer: its ``act_layer``.
        ssm_conv: its ``d_conv``.
        ssm_conv_bias: its ``conv_bias``.
        ssm_drop_rate: its ``dropout``.
        ssm_init: its ``initialize``.
        forward_type: its ``forward_type``.
        mlp_ratio: the MLP's hidden width over ``c``; 0 leaves the MLP branch out.
        mlp_act_layer: its activation.
        mlp_drop_rate: its dropout.
        gmlp: use the gated MLP.
        use_checkpoint: recompute the block in backward instead of keeping its activations.
        post_norm: norm each branch's output instead of its input.
        selective_scan_backend: see `SS2D`.

    Raises:
        ConfigError: as `SS2D`.
        BackendError: as `SS2D`.
    """

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0.0,
        norm_layer: str | Callable[[int], nn.Module] = nn.LayerNorm,
        channel_first: bool = False,
        ssm_d_state: int | str = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str = "v2",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str | Callable[[], nn.Module] = nn.GELU,
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
        selective_scan_backend: str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.ssm_branch = ssm_ratio > 0
        self.mlp_branch = mlp_ratio > 0
        self.use_checkpoint = use_checkpoint
        self.post_norm = post_norm
        self.channel_first = channel_first
        if self.ssm_branch:
            self.norm = make_norm(norm_layer, hidden_dim, channel_first)
            self.op = SS2D(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                forward_type=forward_type,
                selective_scan_backend=selective_scan_backend,
            )
        self.drop_path = DropPath(drop_path)
        if self.mlp_branch:
            self.norm2 = make_norm(norm_layer, hidden_dim, channel_first)
            mlp = GatedMlp if gmlp else Mlp
            self.mlp = mlp(hidden_dim, int(hidden_dim * mlp_ratio), mlp_act_layer, mlp_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``, or ``(b, c, h, w)`` both where ``channel_first``."""
        if not isinstance(x, torch.fx.Proxy):  # symbolic tracing has no values to look at
            self._check(x)
        if self.channel_first:
            x = x.permute(0, 2, 3, 1)
        if self.use_checkpoint and self.training:
            # A compiled graph keeps its backend by itself.
            kept: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _keep_backend}
            x = checkpoint(self._forward, x, use_reentrant=False, **kept)
        else:
            x = self._forward(x)
        return x.permute(0, 3, 1, 2) if self.channel_first else x

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1 if self.channel_first else 3] != self.hidden_dim:
            want = f"(b, {self.hidden_dim}, h, w)" if self.channel_first else f"(b, h, w, {self.hidden_dim})"
            raise InputError(f"VSSBlock takes {want}, given {tuple(x.shape)} (channel_first={self.channel_first})")

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
    if is_plain_module(module, SS2D):
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
