"""Stands in for ``mamba_ssm.modules.mamba2``: the Mamba-2 layer.

Keys, shapes, initial values and their draws, in this order, are those of mamba-ssm 2.3, whose weights load as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError, InputError
from vmamba.integrations.mamba_ssm.causal_conv1d import causal_conv1d_varlen_states
from vmamba.integrations.mamba_ssm.conv1d import step as convolve_next
from vmamba.integrations.mamba_ssm.mamba2.layernorm_gated import RMSNorm
from vmamba.integrations.mamba_ssm.mamba2.ssd_combined import NO_LIMIT, States, mixed, steps
from vmamba.integrations.mamba_ssm.modules.generation import cached_states
from vmamba.integrations.mamba_ssm.modules.scan import wide
from vmamba.integrations.mamba_ssm.modules.selective_state_update import selective_state_update
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

__all__ = ["Mamba2"]


class Mamba2(nn.Module):
    """The Mamba-2 layer (arXiv 2405.21060, §7): one decay a head, B and C shared by the heads of a group.

    As in mamba-ssm's fast path, the weights of convolution and norm are used, and hooks on them are not called; those
    of ``in_proj`` and ``out_proj`` are.

    Args:
        d_model: channels ``c`` of input and output.
        d_state: states ``n`` a channel.
        d_conv: width ``w`` of the convolution.
        conv_init: the convolution's weight is uniform in ±conv_init; None is as torch draws it.
        expand: inner channels over ``c``.
        headdim: channels ``p`` of a head.
        d_ssm: how many of the inner channels ``d`` are scanned, the others being a gated MLP; None is all.
        ngroups: groups ``g`` of heads that share B and C, and are normed together.
        A_init_range: -A is uniform in it.
        D_has_hdim: a skip for each channel, not for each head.
        rmsnorm: a norm behind the scan.
        norm_before_gate: norm, then gate.
        dt_min, dt_max, dt_init_floor: steps are drawn log-uniform in [dt_min, dt_max] and are at least dt_init_floor.
        dt_limit: bounds of each step. mamba-ssm's own `step` forgets them.
        bias, conv_bias: whether the projections, and the convolution, have one.
        chunk_size, use_mem_eff_path, sequence_parallel: kept as attributes; they change nothing here.
        layer_idx: place in an `InferenceParams` cache, or None.
        process_group: None; a layer that several processes share is not provided.
        device, dtype: of the parameters; D stays float32.

    Raises:
        ConfigError: sizes that do not divide each other, or steps or decays that cannot be.
        NotProvidedError: a process group.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise NotProvidedError(
                "process_group is not provided by vmamba's stand-in: each process has the whole layer; leave it out"
            )
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.conv_init = conv_init
        self.expand = expand
        self.d_inner = int(expand * d_model)
        self.headdim = headdim
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.ngroups = ngroups
        self.nheads = self.d_ssm // headdim
        self.D_has_hdim = D_has_hdim
        self.rmsnorm = rmsnorm
        self.norm_before_gate = norm_before_gate
        self.dt_limit = dt_limit
        self.activation = "silu"
        self.chunk_size = chunk_size
        self.use_mem_eff_path = use_mem_eff_path
        self.layer_idx = layer_idx
        self.process_group = process_group
        self.sequence_parallel = sequence_parallel
        self._check(A_init_range, dt_min, dt_max)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        rows = self.d_ssm + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=bias, **factory)
        self.conv1d = nn.Conv1d(rows, rows, d_conv, groups=rows, padding=d_conv - 1, bias=conv_bias, **factory)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.act = nn.SiLU()

        low, high = math.log(dt_min), math.log(dt_max)
        step = torch.exp(torch.rand(self.nheads, **factory) * (high - low) + low).clamp(min=dt_init_floor)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        decay = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = nn.Parameter(torch.log(decay).to(dtype=dtype))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if rmsnorm:
            self.norm = RMSNorm(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **factory)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def _check(self, A_init_range: tuple[float, float], dt_min: float, dt_max: float) -> None:
        if not 0 < self.d_ssm <= self.d_inner:
            raise ConfigError(
                f"d_ssm = {self.d_ssm} must be from 1 to the {self.d_inner} inner channels, expand·d_model"
            )
        if self.d_ssm % self.headdim:
            raise ConfigError(
                f"{self.d_ssm} scanned channels (d_ssm, or expand·d_model) are no multiple of headdim = "
                f"{self.headdim}; give a headdim that divides them"
            )
        if self.nheads % self.ngroups:
            raise ConfigError(
                f"{self.nheads} heads ({self.d_ssm} channels by headdim {self.headdim}) are no multiple of ngroups = "
                f"{self.ngroups}"
            )
        if not 0 < dt_min <= dt_max:
            raise ConfigError(f"steps need 0 < dt_min ≤ dt_max, given dt_min={dt_min}, dt_max={dt_max}")
        if not 0 < A_init_range[0] <= A_init_range[1]:
            raise ConfigError(f"A_init_range needs 0 < low ≤ high, given {A_init_range}: -A is drawn from it")

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Run the layer: ``(b, l, c) → (b, l, c)``, under autocast in its dtype.

        Args:
            u: ``(b, l, c)``, or ``(b·l, c)`` where seqlen is given.
            seqlen: ``l``, or None.
            seq_idx: ``(b, l)`` of integers or None: a row holds several sequences, one behind the other; see
                `mamba_chunk_scan_combined`.
            cu_seqlens: where each sequence of a single row begins, and the end; used with inference_params alone, whose
                cache then has a row for each sequence.
            inference_params: an `InferenceParams`, whose cache at ``layer_idx`` is filled where its ``seqlen_offset``
                is 0, and otherwise moved on by one position, or None.

        Raises:
            InputError: shapes that do not fit; the message shows them.
            ConfigError: a cache without a ``layer_idx``.
        """
        if u.dim() != (3 if seqlen is None else 2) or u.shape[-1] != self.d_model:
            want = "(b, l, c)" if seqlen is None else f"(b·l, c) with l = seqlen = {seqlen} and"
            raise InputError(f"u has shape {tuple(u.shape)}, want {want} c = {self.d_model}")
        if inference_params is not None and inference_params.seqlen_offset > 0:
            return self.step(u, *self._get_states_from_cache(inference_params, len(u)))[0]
        zxbcdt = self.in_proj(u)
        if seqlen is not None:
            zxbcdt = zxbcdt.unflatten(0, (-1, seqlen))
        packed = None if inference_params is None else cu_seqlens
        y, states = mixed(
            zxbcdt,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.dt_bias,
            self._decay(),
            self._skip(),
            seq_idx=seq_idx,
            cu_seqlens=packed,
            dt_limit=self.dt_limit,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=self.norm.eps if self.rmsnorm else 0.0,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
        )
        if inference_params is not None:
            self._fill_cache(inference_params, zxbcdt, states, seq_idx, packed)
        out: Tensor = self.out_proj(y if seqlen is None else y.flatten(0, 1))
        return out

    def _decay(self) -> Tensor:
        return -torch.exp(wide(self.A_log))

    def _skip(self) -> Tensor:
        """D as ``(h, p)`` or ``(h,)``."""
        return self.D.view(self.nheads, self.headdim) if self.D_has_hdim else self.D

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        """The MLP's gate and input, the scan's gate, what is convolved, and the steps."""
        mlp = self.d_inner - self.d_ssm
        sizes = [mlp, mlp, self.d_ssm, self.conv1d.weight.shape[0], self.nheads]
        return tuple(zxbcdt.split(sizes, dim=-1))

    # Position by position.

    def _fill_cache(
        self, inference_params: Any, zxbcdt: Tensor, states: States, seq_idx: Tensor | None, packed: Tensor | None
    ) -> None:
        if seq_idx is not None and packed is None:
            raise InputError("a cache of rows that hold several sequences has a place for each: give cu_seqlens too")
        convolved, width = self._parts(zxbcdt)[3].detach(), self.d_conv
        if packed is None:
            last_inputs = F.pad(convolved.mT, (width - convolved.shape[1], 0))  # a negative number cuts off
            last_states = states.last
        else:
            last_inputs = causal_conv1d_varlen_states(convolved[0], packed, width)
            last_states = torch.cat(states.ends)
        conv_state, ssm_state = self._get_states_from_cache(inference_params, len(last_inputs))
        conv_state.copy_(last_inputs)
        ssm_state.copy_(last_states.detach())

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go on by one position; the states change in place, without gradients.

        Args:
            hidden_states: ``(b, 1, c)``.
            conv_state: the last inputs of the convolution ``(b, d + 2gn, w)``.
            ssm_state: ``(b, h, p, n)``.

        Returns:
            The output ``(b, 1, c)`` and both states.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise InputError(f"a step takes (b, 1, c) = (b, 1, {self.d_model}), given {tuple(hidden_states.shape)}")
        heads, groups = (self.nheads, self.headdim), (self.ngroups, self.d_state)
        z0, x0, z, xBC, dt = self._parts(self.in_proj(hidden_states[:, 0]))
        xBC = convolve_next(xBC, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, self.activation)
        x, B, C = xBC.split([self.d_ssm, self.ngroups * self.d_state, self.ngroups * self.d_state], dim=-1)
        delta = steps(dt, self.dt_bias, True, self.dt_limit)
        y = selective_state_update(
            ssm_state,
            wide(x).unflatten(-1, heads),
            delta[..., None].expand(-1, *heads),
            self._decay()[:, None, None].expand(*heads, self.d_state),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
            self._skip() if self.D_has_hdim else self.D[:, None].expand(heads),
            None if self.rmsnorm else z.unflatten(-1, heads),
        ).flatten(1)
        y = (self.norm(y, z) if self.rmsnorm else y).to(xBC.dtype)
        if z0.shape[-1]:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return self.out_proj(y)[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states ``(b, d + 2gn, w)`` and ``(b, h, p, n)`` in the weights' dtype or ``dtype``, for any length."""
        conv, projection = self.conv1d.weight, self.in_proj.weight
        return (
            conv.new_zeros(batch_size, len(conv), self.d_conv, dtype=dtype),
            projection.new_zeros(batch_size, self.nheads, self.headdim, self.d_state, dtype=dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return cached_states(self, inference_params, batch_size, initialize_states)
