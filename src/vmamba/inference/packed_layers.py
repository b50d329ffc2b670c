"""Layers for inference on a CPU: weights packed, norms folded into them, each a few kernel calls.

`vmamba.inference.pack.pack` puts them into a model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vmamba._torch import is_plain_module
from vmamba.inference.fold import affine_and_eps, can_fold, fold
from vmamba.inference.packed_scan import packed_scan
from vmamba.kernels.native import depthwise, library
from vmamba.kernels.native.convolution import PackedConvolution
from vmamba.kernels.native.products import PackedMatrix, affine_rows, packed_linear, packed_mlp
from vmamba.kernels.native.program import Calls, Immediate, Program, memory_of
from vmamba.kernels.native.structs import Activation
from vmamba.layers.basic import Conv2d, DropPath, Pointwise
from vmamba.layers.downsample import PatchMerging, merge_patches
from vmamba.layers.mlp import Mlp
from vmamba.layers.ss2d import SS2D
from vmamba.layers.vss_block import VSSBlock
from vmamba.scan.dispatch import ambient

_SHAPES_KEPT = 2  # for which a sequence keeps its program; all of vmamba_tiny then keep 200 MB at most
_MOST_BYTES = 24 << 20  # that one program may keep
_programs_lock = threading.Lock()


def is_as_built(module: nn.Module) -> bool:
    """Whether neither it nor a part of it was patched, has hooks, or lies elsewhere than in float32 on the CPU."""
    return all(is_plain_module(part, type(part)) for part in module.modules()) and all(
        p.device.type == "cpu" and p.dtype == torch.float32 for p in module.parameters()
    )


def activation_of(module: nn.Module) -> Activation | None:
    """The kernels' name for an activation, None where they have none."""
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    return "silu" if type(module) is nn.SiLU else None


class Recordable(nn.Module):
    """A packed layer: kernel calls and nothing else, so that a `Program` can hold them."""

    def calls(self, x: Tensor, calls: Calls) -> Tensor:
        """Have the layer computed.

        Args:
            x: ``(b, h, w, c)``, contiguous. Its memory may be the result's.
            calls: where they go.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h', w', c')``; ``x`` is left alone."""
        return self.calls(x.contiguous(), Immediate())


class PackedVSSBlock(Recordable):
    """A `VSSBlock` in evaluation mode. It keeps copies of the block's weights; the block can go."""

    @staticmethod
    def fits(block: nn.Module) -> bool:
        """Whether this class computes it."""
        return (
            type(block) is VSSBlock
            and is_as_built(block)
            and not block.post_norm
            and not block.channel_first
            and type(block.drop_path) is DropPath
            and (not block.ssm_branch or PackedSS2D.fits(block.norm, block.op))
            and (not block.mlp_branch or PackedMlp.fits(block.norm2, block.mlp))
        )

    def __init__(self, block: VSSBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.ssm = PackedSS2D(block.norm, block.op, dtype) if block.ssm_branch else None
        self.mlp = PackedMlp(block.norm2, block.mlp, dtype) if block.mlp_branch else None

    def calls(self, x: Tensor, calls: Calls) -> Tensor:
        """See `Recordable`."""
        for branch in (self.ssm, self.mlp):
            x = x if branch is None else branch.calls(x, calls)
        return x


class PackedSS2D(Recordable):
    """``x + op(norm(x))`` for an `SS2D`."""

    @staticmethod
    def fits(norm: nn.Module, op: SS2D) -> bool:
        """Whether this class computes it."""
        kind, conv = op.forward_type, _convolution(op)
        return (
            can_fold(norm)
            and type(op) is SS2D
            and not op.channel_first
            and type(op.in_proj) is type(op.out_proj) is Pointwise
            and kind.scan_mode != "cascade2d"
            and op.scan_orders is None
            and not op.share_directions
            and can_fold(op.out_norm)
            and not kind.out_act
            and type(op.dropout) is nn.Dropout
            and activation_of(op.act) is not None
            and type(conv) is Conv2d
            and conv.is_depthwise3x3()
            and ambient(op.selective_scan_backend) in (None, "oflex")
        )

    def __init__(self, norm: nn.Module, op: SS2D, dtype: torch.dtype) -> None:
        super().__init__()
        kind = op.forward_type
        conv, activation = _convolution(op), activation_of(op.act)
        assert isinstance(conv, Conv2d)
        assert activation is not None
        self.activation: Activation = activation
        self.d_inner = op.d_inner
        in_weight, in_bias, self.norm_eps = fold(norm, op.in_proj)
        d = op.d_inner
        self.in_proj = PackedMatrix(in_weight[:d], in_bias[:d], dtype)
        self.gate = PackedMatrix(in_weight[d:], in_bias[d:], dtype) if kind.gate else None
        self.gate_act: Activation = activation if kind.gate_act else "none"
        self.affine: Tensor | None = None
        if kind.gate:  # comes between the norm and the product
            scale, shift, self.out_eps = affine_and_eps(op.out_norm, d)
            self.out_proj = PackedMatrix(op.out_proj.weight, op.out_proj.bias, dtype)
            self.affine = affine_rows(scale, shift)
        else:
            out_weight, out_bias, self.out_eps = fold(op.out_norm, op.out_proj)
            self.out_proj = PackedMatrix(out_weight, out_bias, dtype)
        self.x_proj = PackedMatrix(op.x_proj_weight.flatten(0, 1), None, dtype)
        self.directions = op.x_proj_weight.shape[:2]
        self.taps = depthwise.taps_of(conv.weight.detach())
        self.conv_bias = None if conv.bias is None else conv.bias.detach().clone()
        self.scan = packed_scan(op)

    def calls(self, x: Tensor, calls: Calls) -> Tensor:
        """See `Recordable`."""
        if x.numel() == 0:
            return x
        inner = (*x.shape[:-1], self.d_inner)
        u = packed_linear(calls, x, self.in_proj, calls.buffer("u", inner, x.dtype), norm_eps=self.norm_eps)
        gate: tuple[Tensor, Tensor] | None = None
        if self.gate is not None and self.affine is not None:
            z = calls.buffer("z", inner)
            packed_linear(calls, x, self.gate, z, norm_eps=self.norm_eps, activation=self.gate_act)
            gate = z, self.affine
        v = calls.buffer("v", inner, x.dtype)
        calls.add(depthwise.forward_call(u, self.taps, self.conv_bias, self.activation, v))
        x_dbl = calls.buffer("x_dbl", (*x.shape[:-1], self.x_proj.outputs))
        packed_linear(calls, v, self.x_proj, x_dbl)
        y = calls.buffer("y", inner)
        self.scan(calls, v, x_dbl.unflatten(-1, self.directions), y)
        return packed_linear(calls, y, self.out_proj, calls.updated(x), norm_eps=self.out_eps, gate=gate, residual=x)


def _convolution(op: SS2D) -> nn.Module | None:
    """The layer's convolution; in forward type ``m0`` it is the only one of a sequence."""
    conv = op.conv2d
    return conv[0] if type(conv) is nn.Sequential and len(conv) == 1 else conv


class PackedMlp(Recordable):
    """``x + mlp(norm(x))`` for an `Mlp`."""

    @staticmethod
    def fits(norm: nn.Module, mlp: nn.Module) -> bool:
        """Whether this class computes it."""
        return (
            can_fold(norm)
            and type(mlp) is Mlp
            and type(mlp.fc1) is type(mlp.fc2) is Pointwise
            and activation_of(mlp.act) is not None
            and type(mlp.drop) is nn.Dropout
        )

    def __init__(self, norm: nn.Module, mlp: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(mlp, Mlp)
        activation = activation_of(mlp.act)
        assert activation is not None
        self.activation = activation
        weight, bias, self.norm_eps = fold(norm, mlp.fc1)
        self.fc1 = PackedMatrix(weight, bias, dtype)
        self.fc2 = PackedMatrix(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def calls(self, x: Tensor, calls: Calls) -> Tensor:
        """See `Recordable`."""
        return packed_mlp(
            calls,
            x,
            self.fc1,
            self.fc2,
            calls.updated(x),
            norm_eps=self.norm_eps,
            activation=self.activation,
            residual=x,
        )


class PackedPatchMerging(nn.Module):
    """A `PatchMerging`."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether this class computes it."""
        return (
            type(module) is PatchMerging
            and is_as_built(module)
            and can_fold(module.norm)
            and type(module.reduction) is Pointwise
        )

    def __init__(self, module: PatchMerging, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias, self.norm_eps = fold(module.norm, module.reduction)
        self.reduction = PackedMatrix(weight, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, ⌈h/2⌉, ⌈w/2⌉, c')``."""
        x = merge_patches(x)
        y = x.new_empty(*x.shape[:-1], self.reduction.outputs)
        return packed_linear(Immediate(), x, self.reduction, y, norm_eps=self.norm_eps)


class PackedConv(Recordable):
    """A `Conv2d`, the layer norm behind it, and the activation behind that."""

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether this class computes it."""
        return (
            type(conv) is Conv2d
            and is_as_built(conv)
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.stride[0] == conv.stride[1]
            and not isinstance(conv.padding, str)
            and conv.padding[0] == conv.padding[1]
            and conv.padding_mode == "zeros"
        )

    def __init__(self, conv: Conv2d, norm: nn.LayerNorm | None, activation: Activation, dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.convolution = PackedConvolution(
            conv.weight,
            conv.bias,
            conv.stride[0],
            conv.padding[0],
            dtype,
            None if norm is None else (norm.weight, norm.bias, norm.eps),
            activation,
        )

    def calls(self, x: Tensor, calls: Calls) -> Tensor:
        """See `Recordable`."""
        return self.convolution(calls, x)


class PackedSequence(nn.Module):
    """Packed layers one after the other, run as a `Program` for each input shape."""

    def __init__(self, layers: Sequence[Recordable]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._programs: OrderedDict[object, Program | None] = OrderedDict()

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h', w', c')``."""
        program = self._program(x)
        return self._record(x.contiguous(), Immediate()) if program is None else program(x)

    def _program(self, x: Tensor) -> Program | None:
        key = (x.shape, x.dtype, torch.get_num_threads(), library.isa())
        with _programs_lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            else:
                bytes = memory_of(self._record, x.shape, x.dtype)
                # Where calls are long there is nothing to gain, and memory to lose.
                fits = x.numel() > 0 and sum(bytes.values()) <= _MOST_BYTES
                self._programs[key] = Program(self._record, x.shape, x.dtype, bytes) if fits else None
                while len(self._programs) > _SHAPES_KEPT:
                    self._programs.popitem(last=False)
            return self._programs[key]

    def _record(self, x: Tensor, calls: Calls) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, Recordable)
            x = layer.calls(x, calls)
        return x

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_programs": OrderedDict()}
