"""Convolutions for inference on a CPU with the weight laid out beforehand, layer norm and activation behind them."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.kernels.native.library import KernelCall
from vmamba.kernels.native.products import PackedMatrix, affine_rows, rounded, share_rows
from vmamba.kernels.native.program import Calls
from vmamba.kernels.native.structs import ACTIVATION_CODES, Activation, struct, tensor

_GATHERED = 4  # patches that a thread gathers at once


class PackedConvolution:
    """A convolution, then perhaps a layer norm over its channels, then perhaps an activation.

    Args:
        weight: ``(c_out, c_in, kh, kw)``.
        bias: ``(c_out)`` or None.
        stride: of both axes.
        padding: zeros around the map, the same on all sides.
        dtype: float32 or bfloat16: what is multiplied, and what comes out.
        norm: weight ``(c_out)``, bias ``(c_out)`` and ``eps`` of the norm, or None.
        activation: ``"none"``, ``"gelu"`` (exact) or ``"silu"``.

    Raises:
        BackendError: there are no packed products in ``dtype`` here, see `vmamba.kernels.native.products.obstacle`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        dtype: torch.dtype,
        norm: tuple[Tensor, Tensor, float] | None = None,
        activation: Activation = "none",
    ) -> None:
        outputs = weight.shape[0]
        self.kernel = weight.shape[2:]
        self.stride, self.padding = stride, padding
        self.activation = activation
        self.matrix = PackedMatrix(weight.detach().permute(0, 2, 3, 1).reshape(outputs, -1), bias, dtype)
        self.norm = None if norm is None else affine_rows(norm[0], norm[1])
        self.eps = 0.0 if norm is None else norm[2]

    def __call__(self, calls: Calls, x: Tensor) -> Tensor:
        """Have it computed.

        Args:
            calls: where the call goes.
            x: ``(b, h, w, c_in)``; float32, bfloat16 or float16, on the CPU.

        Returns:
            ``(b, h', w', c_out)``, contiguous.
        """
        x = x if x.stride(3) == 1 else x.contiguous()
        batch, height, width, channels = x.shape
        out_height, out_width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip((height, width), self.kernel, strict=True)
        )
        y = calls.result([batch, out_height, out_width, self.matrix.outputs], self.matrix.dtype)
        if y.numel() == 0:
            return y
        sharing, memory = share_rows(
            calls,
            batch * out_height * out_width,
            [self.matrix.inputs, self.matrix.outputs],
            more=_GATHERED * rounded(self.matrix.inputs),
            may_cut=self.norm is None,
        )
        norm_weight, norm_bias = (None, None) if self.norm is None else (row.data_ptr() for row in self.norm)
        args = struct(
            "PackedConvArgs",
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            out_height=out_height,
            out_width=out_width,
            kernel_height=self.kernel[0],
            kernel_width=self.kernel[1],
            stride=self.stride,
            padding=self.padding,
            x=tensor(x),
            matrix=self.matrix.arg,
            norm=self.norm is not None,
            eps=self.eps,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            activation=ACTIVATION_CODES[self.activation],
            y=tensor(y.view(-1, self.matrix.outputs)),
            sharing=sharing,
        )
        calls.add(KernelCall("packed_conv", args, (x, y, memory, self.norm, *self.matrix.tensors), self.matrix.isa))
        return y
