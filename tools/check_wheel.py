"""Check an installed wheel: the compiled kernels are in it, run, and agree with the reference. Run by cibuildwheel."""

import sys

import torch

import vmamba
from vmamba.export.aoti import kernel_library
from vmamba.scan import recorded_runs, selective_scan, selective_scan_reference

torch.manual_seed(0)
u, delta = torch.randn(2, 2, 6, 40)
B, C = torch.randn(2, 2, 2, 3, 40)
args = (u, delta, -torch.rand(6, 3), B, C, torch.ones(6), torch.zeros(6), True)
with recorded_runs() as runs:
    y = selective_scan(*args, backend="oflex")
error = (y - selective_scan_reference(*args)).abs().max().item()
assert error < 1e-4, f"the kernels are off by {error}"
assert kernel_library() is not None or sys.platform == "win32", "the scans' static library is missing"
print(f"vmamba {vmamba.__version__}, torch {torch.__version__}: {runs[0].backend} {runs[0].detail}, error {error:.1e}")
