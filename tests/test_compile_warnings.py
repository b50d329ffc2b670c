"""A compiled model brings no warnings of ours onto the screen."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import warnings
warnings.filterwarnings("error", message="Dynamo detected")
import torch, vmamba
model = vmamba.create_model("vmamba_nano", dims=[8], depths=[1])
images = torch.randn(1, 3, 32, 32)
torch.compile(model, backend="eager")(images).sum().backward()
with torch.no_grad():
    torch.compile(model.eval(), backend="eager")(images)
"""


@pytest.mark.long
def test_compiling_a_model_warns_of_nothing() -> None:
    # In a process of its own: dynamo warns once a process.
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Dynamo detected" not in done.stderr
