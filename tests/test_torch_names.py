"""Private names of torch's: each may be missing, and what then serves gives the same answers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import vmamba
from vmamba import _torch

ROOT = Path(vmamba.__file__).parent
#: (owner, name): all that `vmamba._torch` reads of torch's.
NAMES = [
    ("torch._C", "_get_tracing_state"),
    ("torch._C", "_has_storage"),
    ("torch._C", "_are_functorch_transforms_active"),
    ("torch._C", "_len_torch_dispatch_stack"),
    ("torch.utils._python_dispatch", "is_in_torch_dispatch_mode"),
    ("torch.nn.modules.module", "_has_any_global_hook"),
    ("torch.autograd.forward_ad", "_current_level"),
    ("torch.compiler", "is_exporting"),
]


@pytest.mark.long
@pytest.mark.parametrize(("owner", "name"), [*NAMES, ("", "")])
def test_without_a_name_everything_but_what_it_tells_works(owner: str, name: str) -> None:
    script = f"""
import importlib, torch
import torch.utils._python_dispatch, torch.autograd.forward_ad, torch.nn.modules.module
names = {NAMES if not name else [(owner, name)]!r}
# What torch itself does with them is not the question: they vanish while the package looks for them.
kept = [(importlib.import_module(owner), name) for owner, name in names]
kept = [(module, name, getattr(module, name)) for module, name in kept if hasattr(module, name)]
for module, name, _ in kept:
    delattr(module, name)
import vmamba._torch
for module, name, value in kept:
    setattr(module, name, value)
import vmamba
torch.manual_seed(0)
model = vmamba.create_model("vmamba_nano", dims=[8, 16], depths=[1, 1], num_classes=3).eval()
x = torch.randn(2, 3, 16, 16)
y = model(x)
y.sum().backward()
with vmamba.backend("torch"):
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
seen = []
handle = model.layers[0].blocks[0].mlp.act.register_forward_hook(lambda *_: seen.append(1))
model(x)
assert seen, "a hook is called"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def private_names(path: Path) -> Iterator[str]:
    """Uses of an underscored attribute of something that is reached from ``torch``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            parts = chain.split(".")
            if parts[0] == "torch" and any(part.startswith("_") and not part.startswith("__") for part in parts[1:]):
                yield f"{path.name}:{node.lineno} {chain}"


def test_private_names_are_in_one_module() -> None:
    found = [use for path in ROOT.rglob("*.py") if path.name != "_torch.py" for use in private_names(path)]
    assert found == []


def test_what_serves_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[bool]:
        plain = [_torch.is_functorch_active(), _torch.is_plain(torch.ones(1))]
        inside: list[bool] = []

        def look(t: torch.Tensor) -> torch.Tensor:
            inside.append(_torch.is_functorch_active())
            return t.sum()

        torch.func.grad(look)(torch.ones(2))
        hooked = nn.Linear(1, 1)
        hooked.register_forward_hook(lambda *_: None)
        return [*plain, *inside, _torch.is_plain_module(hooked, nn.Linear), _torch.is_plain_module(nn.ReLU(), nn.ReLU)]

    want = told()
    assert want == [False, True, True, False, True]
    for name in ("_transforms_active", "_in_dispatch_mode", "_any_global_hook"):
        monkeypatch.setattr(_torch, name, None)
    assert told() == want
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not _torch.is_plain_module(nn.ReLU(), nn.ReLU)
    finally:
        handle.remove()
