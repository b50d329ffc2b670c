"""Private names of torch's: each may be missing, and what then serves gives the same answers."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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
    ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter"),
    ("torch.compiler", "is_exporting"),
    ("torch.compiler", "_is_exporting_flag"),
]


@pytest.mark.long
def test_without_all_of_them_a_model_works() -> None:
    script = f"""
import importlib, torch
import torch.utils._python_dispatch, torch.autograd.forward_ad, torch.nn.modules.module
names = {NAMES!r}
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


def told(names: ModuleType) -> dict[str, object]:
    """What these answer, with nobody looking and with somebody."""
    answers: dict[str, object] = {}

    def look(t: torch.Tensor, where: str) -> torch.Tensor:
        answers[where] = (
            names.is_plain(t),
            names.is_traced(),
            names.is_exporting(),
            names.is_functorch_active(),
            names.is_forward_mode(),
        )
        return t.sum()

    ones = torch.ones(2)
    look(ones, "alone")
    torch.func.grad(lambda t: look(t, "grad"))(ones)
    torch.func.jvp(lambda t: look(t, "jvp"), (ones,), (ones,))
    torch.jit.trace(lambda t: look(t, "trace"), ones, check_trace=False)
    with FlopCounterMode(display=False):
        look(ones, "mode")
    hooked = nn.Linear(1, 1)
    hooked.register_forward_hook(lambda *_: None)
    answers["modules"] = (names.is_plain_module(hooked, nn.Linear), names.is_plain_module(nn.ReLU(), nn.ReLU))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    answers["global hook"] = names.is_plain_module(nn.ReLU(), nn.ReLU)
    handle.remove()
    answers["memory"] = names.has_memory(ones)
    return answers


#: What nothing else tells: without these names the answers are those of nobody looking.
LOST = {"_get_tracing_state": "trace", "_current_level": "jvp"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_what_serves_without_a_name_tells_the_same(owner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = told(_torch)
    assert want["alone"] == (True, False, False, False, False)
    assert want["grad"] == (False, False, False, True, False)
    assert want["jvp"] == (False, False, False, True, True)
    assert want["trace"] == (False, True, True, False, False)
    assert want["mode"] == (False, False, False, False, False)
    assert (want["modules"], want["global hook"]) == ((False, True), False)
    spec = importlib.util.spec_from_file_location("_torch_without_a_name", _torch.__file__)
    fresh = importlib.util.module_from_spec(spec)
    # What torch itself does with the name is not the question: it is gone while the module looks for it.
    with monkeypatch.context() as patch:
        patch.delattr(f"{owner}.{name}", raising=False)
        spec.loader.exec_module(fresh)
    lost = LOST.get(name)
    got = told(fresh)
    assert {where: said for where, said in got.items() if where != lost} == {
        where: said for where, said in want.items() if where != lost
    }
