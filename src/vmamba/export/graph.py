"""The traced graph of a model, from which every target is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor, nn

from vmamba.errors import ExportError
from vmamba.export import block_scan, row_scan
from vmamba.layers import SS2D
from vmamba.scan.dispatch import backend, stand_in

#: Axes of the images that can be left open, by name.
AXES = {"batch": 0, "height": 2, "width": 3}


class ScanForm(Enum):
    """How a graph holds the scan."""

    #: PyTorch's own operators.
    PLAIN = auto()
    #: The operators of `vmamba.export.row_scan`, for ONNX.
    ROWS = auto()
    #: The operators of ``"oflex"``.
    KERNEL = auto()


@dataclass(frozen=True)
class Graph:
    """A model and how it is to be traced.

    Attributes:
        model: in eval mode, on the CPU, in float32; any module, it is not changed.
        example: images ``(b, in_chans, H, W)``, float32; along the open axes any that the model takes, of which none
            may come down to a single place or image, since a size of 1 is traced as a constant.
        axes: those of `AXES` that may have any size.
        dtype: what the file computes in; images and logits are float32.
        metadata: what the file says about itself.
    """

    model: nn.Module
    example: Tensor
    axes: tuple[str, ...]
    dtype: torch.dtype
    metadata: Mapping[str, str]

    def trace(self, scan: ScanForm = ScanForm.PLAIN) -> torch.export.ExportedProgram:
        """The graph, ``pixels → logits``, of PyTorch's own operators but for the scan, which has the form ``scan``."""
        model = self.model if self.dtype == torch.float32 else _Cast(self.model, self.dtype)
        # Named sizes are refused where the tracer asks whether one is 1, as it does to compare strides.
        dims = {AXES[axis]: torch.export.Dim.AUTO for axis in self.axes}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            kernel = scan is ScanForm.KERNEL and not scans_as_mamba2(self.model)
            stack.enter_context(backend("oflex" if kernel else "torch"))
            if scan is ScanForm.ROWS:
                stack.enter_context(stand_in("torch", row_scan))
            elif scan is ScanForm.PLAIN and not {"height", "width"} & set(self.axes):
                stack.enter_context(stand_in("torch", block_scan))
            program = torch.export.export(model, (self.example,), dynamic_shapes=(dims,), strict=False)
        fixed = [axis for axis, size in zip(self.axes, self.open_sizes(program), strict=True) if isinstance(size, int)]
        if fixed:
            raise ExportError(f"PyTorch traced {' and '.join(fixed)} as constant; leave it out of dynamic")
        return program

    def open_sizes(self, program: torch.export.ExportedProgram) -> list[int | torch.SymInt]:
        """The sizes of the images in ``program`` along `axes`: symbols."""
        name = program.graph_signature.user_inputs[0]
        (pixels,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
        return [pixels.meta["val"].shape[AXES[axis]] for axis in self.axes]


def scans_as_mamba2(model: nn.Module) -> bool:
    """Whether its scans are Mamba-2's, which are matrix products in every file: ``"oflex"`` has no kernel for them."""
    return any(isinstance(part, SS2D) and part.forward_type.family == "m0" for part in model.modules())


class _Cast(nn.Module):
    """A copy of a model in another dtype, that takes and gives float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels.to(self.dtype))
        return logits.float()
