"""Stands in for ``mamba_ssm.modules.mamba_simple``: the Mamba block, with the directions that vision forks added.

Keys, shapes, initial values and their draws, in this order, are those of mamba-ssm 1.0 to 2.3 and of the forks named at
`Mamba`, whose weights load as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError, InputError, nearest
from vmamba.integrations.mamba_ssm.modules.generation import cached_states
from vmamba.integrations.mamba_ssm.modules.inner import Weights, inner
from vmamba.integrations.mamba_ssm.modules.residual_block import Block
from vmamba.integrations.mamba_ssm.modules.scan import wide
from vmamba.integrations.mamba_ssm.modules.selective_state_update import selective_state_update

__all__ = ["Block", "Mamba"]

BIMAMBA_TYPES = ("none", "v1", "v2", "v3")
DT_INITS = ("random", "constant")

#: Keys of the passes besides the first end in these.
_SUFFIXES = {"none": (), "v1": (), "v2": ("_b",), "v3": ("_b", "_s")}


class Mamba(nn.Module):
    """The Mamba block (arXiv 2312.00752, Fig. 3), in one direction or in several.

    ``bimamba_type`` is the forks' word for the directions, whose outputs are summed before the last projection:

    - ``"none"``: forward, as in mamba-ssm.
    - ``"v1"`` (Vim, arXiv 2401.09417): forward and back over the same step, B and C; ``A_b_log`` is the way back's.
    - ``"v2"`` (Vim; VideoMamba, arXiv 2403.06977): the way back has a convolution and projections of its own,
      ``*_b``.
    - ``"v3"`` (SegMamba, arXiv 2401.13560; Vivim, arXiv 2401.14168): as ``"v2"``, and a third pass, ``*_s``, that reads
      the first position of each of the ``nslices`` slices, then the second of each, and so on.

    Forks compute the forward direction alone where ``use_fast_path`` is off; here both settings give all directions.
    As in mamba-ssm's fast path, the weights of the layers inside are used, and hooks on them, but for ``out_proj``'s,
    are not called.

    Args:
        d_model: channels ``c`` of input and output.
        d_state: states ``n`` a channel.
        d_conv: width ``w`` of the convolution.
        expand: inner channels ``d`` over ``c``.
        dt_rank: rank ``r`` of the step's projection; ``"auto"`` is ``c / 16``, rounded up.
        dt_min, dt_max, dt_init_floor: steps are drawn log-uniform in [dt_min, dt_max] and are at least dt_init_floor.
        dt_init, dt_scale: ``"random"``: weights of the step uniform in ±dt_scale·r^-½; ``"constant"``: that number.
        conv_bias, bias: whether the convolution, and the first and last projections, have one.
        use_fast_path: kept as an attribute; both settings compute the same.
        layer_idx: place in an `InferenceParams` cache, or None.
        device, dtype: of the parameters; A_log and D stay float32.
        bimamba_type: see above; None is ``"none"``.
        bimamba: True is ``"v2"`` (VideoMamba's word; its own default is True).
        if_divide_out, if_devide_out: halve the sum of ``"v2"`` (Vim, in both spellings); not used by other types.
        init_layer_scale: start of the scales ``gamma (c,)`` on the output, or None for none (Vim).
        nslices: slices of ``"v3"``; the length must be a multiple.
        nframes: Vivim's word for ``nslices``, with which the three passes are averaged, not summed.

    Raises:
        ConfigError: an unknown word, or steps that cannot be.
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bimamba_type: str | None = "none",
        bimamba: bool = False,
        if_divide_out: bool = False,
        if_devide_out: bool = False,
        init_layer_scale: float | None = None,
        nslices: int = 5,
        nframes: int | None = None,
    ) -> None:
        super().__init__()
        bimamba_type = bimamba_type or "none"
        if bimamba and bimamba_type == "none":
            bimamba_type = "v2"
        if bimamba_type not in BIMAMBA_TYPES:
            raise ConfigError(
                f"bimamba_type {bimamba_type!r} is unknown; legal: {', '.join(BIMAMBA_TYPES)}"
                f"{nearest(bimamba_type, BIMAMBA_TYPES)}"
            )
        if dt_init not in DT_INITS:
            raise ConfigError(
                f"dt_init {dt_init!r} is unknown; legal: {', '.join(DT_INITS)}{nearest(dt_init, DT_INITS)}"
            )
        if not 0 < dt_min <= dt_max:
            raise ConfigError(f"steps need 0 < dt_min ≤ dt_max, given dt_min={dt_min}, dt_max={dt_max}")
        if isinstance(dt_rank, str) and dt_rank != "auto":
            raise ConfigError(f"dt_rank {dt_rank!r} is unknown; legal: a number, or 'auto' for d_model / 16")
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path = use_fast_path
        self.layer_idx = layer_idx
        self.bimamba_type = bimamba_type
        self.bimamba = bimamba
        self.if_divide_out = self.if_devide_out = if_divide_out or if_devide_out
        self.nslices = nslices if nframes is None else nframes
        self.nframes = nframes
        self.activation = "silu"
        self.act = nn.SiLU()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        self.init_layer_scale = init_layer_scale
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), float(init_layer_scale), device=device))
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        self._add_pass("", conv_bias, device, dtype)

        bound = dt_scale * self.dt_rank**-0.5
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        else:
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(dt_min), math.log(dt_max)
        step = torch.exp(torch.rand(self.d_inner, **factory) * (high - low) + low).clamp(min=dt_init_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step
        # Models that set the biases of all linear layers to zero leave this one.
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

        self._add_decay("", device)
        if bimamba_type == "v1":
            self.A_b_log = _decay(self.d_inner, d_state, device)
        for suffix in _SUFFIXES[bimamba_type]:
            # The forks draw these as torch does, the step's projection too.
            self._add_pass(suffix, conv_bias, device, dtype)
            self._add_decay(suffix, device)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def _add_pass(
        self, suffix: str, conv_bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        d, r, n, w = self.d_inner, self.dt_rank, self.d_state, self.d_conv
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        conv1d = nn.Conv1d(d, d, w, groups=d, padding=w - 1, bias=conv_bias, **factory)
        self.add_module(f"conv1d{suffix}", conv1d)
        self.add_module(f"x_proj{suffix}", nn.Linear(d, r + 2 * n, bias=False, **factory))
        self.add_module(f"dt_proj{suffix}", nn.Linear(r, d, bias=True, **factory))

    def _add_decay(self, suffix: str, device: torch.device | str | None) -> None:
        self.register_parameter(f"A{suffix}_log", _decay(self.d_inner, self.d_state, device))
        skip = nn.Parameter(torch.ones(self.d_inner, device=device))
        skip._no_weight_decay = True  # type: ignore[attr-defined]
        self.register_parameter(f"D{suffix}", skip)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Run the block: ``(b, l, c) → (b, l, c)``, under autocast in its dtype.

        Args:
            hidden_states: ``(b, l, c)``.
            inference_params: an `InferenceParams`, whose cache at ``layer_idx`` is filled where its ``seqlen_offset``
                is 0, and otherwise moved on by one position, or None.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise InputError(
                f"hidden_states has shape {tuple(hidden_states.shape)}, want (b, l, c) with c = {self.d_model}"
            )
        if inference_params is not None:
            return self._forward_cached(hidden_states, inference_params)
        xz = self._in(hidden_states)
        A_b = -torch.exp(wide(self.A_b_log)) if self.bimamba_type == "v1" else None
        y = self._pass(xz, "", A_b=A_b)
        if self.bimamba_type in ("v2", "v3"):
            y = y + self._pass(xz.flip(-1), "_b").flip(-1)
        if self.bimamba_type == "v2" and self.if_divide_out:
            y = y / 2
        if self.bimamba_type == "v3":
            slices = self._slices(xz)
            y = y + _interleaved(self._pass(_interleaved(xz, slices), "_s"), xz.shape[2] // slices)
            y = y if self.nframes is None else y / 3
        return self._out(y)

    def _in(self, hidden_states: Tensor) -> Tensor:
        """``(b, l, c) → xz (b, 2·d, l)``."""
        b, length, c = hidden_states.shape
        # As one product whose positions lie side by side, as convolution and scan read them; behind `nn.Linear` they
        # would have to be copied.
        xz = self.in_proj.weight @ hidden_states.reshape(b * length, c).t()
        if self.in_proj.bias is not None:
            xz = xz + self.in_proj.bias.to(xz.dtype)[:, None]
        return xz.view(-1, b, length).transpose(0, 1)

    def _out(self, y: Tensor) -> Tensor:
        """``(b, d, l) → (b, l, c)``."""
        out: Tensor = self.out_proj(y.transpose(1, 2))
        return out if self.init_layer_scale is None else out * self.gamma

    def _pass(self, xz: Tensor, suffix: str, **options: Any) -> Any:
        """One pass over ``xz (b, 2·d, l)`` with the weights that end in ``suffix``; ``options`` are `inner`'s."""
        conv1d, x_proj, dt_proj = (getattr(self, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        A = -torch.exp(wide(getattr(self, f"A{suffix}_log")))
        D = wide(getattr(self, f"D{suffix}"))
        weights = Weights(conv1d.weight, conv1d.bias, x_proj.weight, dt_proj.weight)
        return inner(xz, weights, A, D=D, delta_bias=wide(dt_proj.bias), **options)

    def _slices(self, xz: Tensor) -> int:
        if xz.shape[2] % self.nslices:
            raise InputError(
                f"the length {xz.shape[2]} is no multiple of nslices = {self.nslices}; pad the sequence, or give "
                "Mamba another nslices"
            )
        return self.nslices

    # Position by position.

    def _forward_cached(self, hidden_states: Tensor, inference_params: Any) -> Tensor:
        if self.bimamba_type != "none":
            raise InputError(
                f"bimamba_type {self.bimamba_type!r} reads the sequence from its end too, so that it cannot go on "
                "position by position; call it without inference_params"
            )
        b, length, _ = hidden_states.shape
        conv_state, ssm_state = self._get_states_from_cache(inference_params, b)
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, conv_state, ssm_state)[0]
        xz = self._in(hidden_states)
        x = xz[:, : self.d_inner].detach()
        conv_state.copy_(F.pad(x, (self.d_conv - length, 0)))  # a negative number cuts off
        y, last = self._pass(xz, "", return_last_state=True)
        ssm_state.copy_(last.detach())
        return self._out(y)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go on by one position; the states change in place, without gradients.

        Args:
            hidden_states: ``(b, 1, c)``.
            conv_state: the last inputs of the convolution ``(b, d, w)``.
            ssm_state: ``(b, d, n)``.

        Returns:
            The output ``(b, 1, c)`` and both states.
        """
        if self.bimamba_type != "none":
            raise InputError(f"bimamba_type {self.bimamba_type!r} reads the sequence from its end too: it has no step")
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise InputError(f"a step takes (b, 1, c) = (b, 1, {self.d_model}), given {tuple(hidden_states.shape)}")
        x, z = self.in_proj(hidden_states[:, 0]).chunk(2, dim=-1)  # (b, d)
        window = torch.cat([conv_state[:, :, 1:], x[:, :, None].to(conv_state.dtype)], dim=-1)
        conv_state.copy_(window.detach())
        convolved = (wide(window) * wide(self.conv1d.weight[:, 0])).sum(-1)
        if self.conv1d.bias is not None:
            convolved = convolved + wide(self.conv1d.bias)
        x = F.silu(convolved).to(x.dtype)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)  # its bias is added with the softplus
        A = -torch.exp(wide(self.A_log))
        y = selective_state_update(ssm_state, x, dt, A, B, C, self.D, z, self.dt_proj.bias, dt_softplus=True)
        return self._out(y[:, :, None]), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states ``(b, d, w)`` and ``(b, d, n)`` in the weights' dtype or ``dtype``; no length changes them."""
        conv, projection = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype),
            projection.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return cached_states(self, inference_params, batch_size, initialize_states)


def _decay(d: int, n: int, device: torch.device | str | None) -> nn.Parameter:
    """``A_log (d, n)``: A is -1, …, -n in each channel."""
    A_log = nn.Parameter(torch.log(torch.arange(1, n + 1, dtype=torch.float32, device=device)).repeat(d, 1))
    A_log._no_weight_decay = True  # type: ignore[attr-defined]
    return A_log


def _interleaved(t: Tensor, slices: int) -> Tensor:
    """Read ``(b, d, l)`` across its slices: the first of each, the second of each, …; ``l / slices`` undoes it."""
    crossed: Tensor = t.unflatten(2, (slices, -1)).transpose(2, 3)
    return crossed.flatten(2)
