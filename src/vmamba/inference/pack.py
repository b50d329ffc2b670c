"""`pack`: put packed layers into a model.

What they do not compute, or what has hooks or was patched, stays as it is. So a packed model gives the model's numbers
always, and its speed where it can.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vmamba._torch import is_plain_module
from vmamba.heads.blocks import ConvBlock
from vmamba.inference.packed_layers import (
    PackedConv,
    PackedPatchMerging,
    PackedSequence,
    PackedVSSBlock,
    Recordable,
    activation_of,
    is_as_built,
)
from vmamba.kernels.native.products import obstacle
from vmamba.kernels.native.structs import Activation
from vmamba.layers.basic import Conv2d
from vmamba.layers.norm import LayerNorm


def pack(model: nn.Module, dtype: torch.dtype) -> int:
    """Swap, in place, the blocks of ``model`` that can be packed, and turn the rest into ``dtype``.

    Args:
        model: in evaluation mode, on the CPU, in float32.
        dtype: float32 or bfloat16: what is multiplied, and what goes from block to block. States, sums and norms are
            float32.

    Returns:
        how many blocks were swapped; with 0 the model is as it was, in ``dtype``.
    """
    swapped = 0
    if not obstacle(dtype):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if PackedVSSBlock.fits(child):
                    setattr(parent, name, PackedVSSBlock(child, dtype))  # type: ignore[arg-type]
                    swapped += 1
                elif PackedPatchMerging.fits(child):
                    setattr(parent, name, PackedPatchMerging(child, dtype))  # type: ignore[arg-type]
            if type(parent) is nn.Sequential and is_plain_module(parent, nn.Sequential):
                _pack_convolutions(parent, dtype)
                _join(parent)
    if swapped:
        fold_batch_norms(model)
    model.to(dtype)
    return swapped


def fold_batch_norms(model: nn.Module) -> int:
    """Put, in place, the batch norm behind each convolution of decode heads into the convolution; returns how many."""
    folded = 0
    for parent in list(model.modules()):
        if not isinstance(parent, nn.Sequential | ConvBlock):
            continue
        for (name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if (
                type(conv) is nn.Conv2d
                and type(norm) is nn.BatchNorm2d
                and norm.track_running_stats
                and is_plain_module(conv, nn.Conv2d)
                and is_plain_module(norm, nn.BatchNorm2d)
            ):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


def _pack_convolutions(sequence: nn.Sequential, dtype: torch.dtype) -> None:
    """Swap each convolution in ``sequence`` together with what can go into it."""
    rest = list(sequence.named_children())
    sequence._modules.clear()
    while rest:
        name, module = rest.pop(0)
        if PackedConv.fits(module):
            assert isinstance(module, Conv2d)
            norm: nn.LayerNorm | None = None
            activation: Activation = "none"
            if rest and _is_affine_layer_norm(rest[0][1]):
                norm = rest.pop(0)[1]  # type: ignore[assignment]
            if rest and (known := activation_of(rest[0][1])) is not None:
                activation = known
                rest.pop(0)
            module = PackedConv(module, norm, activation, dtype)
        sequence._modules[name] = module


def _join(sequence: nn.Sequential) -> None:
    """Swap each run of packed layers in ``sequence`` for one `PackedSequence`, under the first one's name."""
    layers = list(sequence.named_children())
    sequence._modules.clear()
    for recordable, run in itertools.groupby(layers, key=lambda item: isinstance(item[1], Recordable)):
        members = list(run)
        if recordable:
            members = [(members[0][0], PackedSequence([layer for _, layer in members]))]  # type: ignore[misc]
        sequence._modules.update(members)


def _is_affine_layer_norm(module: nn.Module) -> bool:
    return type(module) in (LayerNorm, nn.LayerNorm) and is_as_built(module) and module.bias is not None
