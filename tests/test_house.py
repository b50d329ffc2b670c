"""The house: a floor imports only from floors below it, and `import vmamba` stays light."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SPEC = importlib.util.find_spec("vmamba")
assert SPEC is not None
ROOT = Path(str(SPEC.origin)).parent

#: From the ground up. Packages on one floor do not know each other.
FLOORS: list[set[str]] = [
    {"errors", "allocator"},
    {"ops"},
    {"layers"},
    {"models"},
    {"heads", "checkpoints"},
    {"data", "timm", "hub", "optimized"},
    {"tasks", "analysis"},
    {"parsing"},
    {"commands"},
    {"app"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

#: The front door: it re-exports, and so imports from these and is imported for its version.
FRONT_DOOR = {"errors", "ops", "layers", "models", "heads", "checkpoints", "optimized"}

#: (importing module, imported package): upward imports that happen inside a function, when it is called.
LAZY_UPWARD = {
    ("models.backbone", "checkpoints"),  # Backbone_VSSM(pretrained=FILE)
    ("models.registry", "checkpoints"),  # create_model(pretrained=True)
    ("models.hub_methods", "hub"),  # VSSM.from_pretrained and its like
    ("ops.backends.native", "vmamba"),  # where the package lies, to find its compiled library
}

HEAVY = {
    "accelerate", "huggingface_hub", "jsonargparse", "matplotlib", "rich", "safetensors", "sklearn", "timm",
    "torchmetrics", "torchvision", "triton", "yaml",
}  # fmt: skip


class Import(NamedTuple):
    module: str  # "models.vssm"
    imported: str  # the part under vmamba, or "vmamba" itself
    line: int
    lazy: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.module} (line {self.line}) imports {self.imported}"


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Imports of this package, those only for type checkers left out."""
    module = module_name(path, root)
    package = list(path.relative_to(root).parts[:-1])

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.level:
                parents = package[: len(package) - child.level + 1]
                names = [".".join(["vmamba", *parents, *filter(None, [child.module])])]
            elif isinstance(child, ast.ImportFrom) and child.module == "vmamba":
                names = [f"vmamba.{alias.name}" for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                names = [str(child.module)]
            for name in names:
                first, _, rest = name.partition(".")
                if first == "vmamba":
                    part = rest.partition(".")[0]
                    yield Import(module, part if part in FLOOR else "vmamba", child.lineno, lazy)
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for other in child.orelse:
                    yield from walk(other, lazy)
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), lazy=False)


def faults(root: Path = ROOT) -> tuple[list[str], set[tuple[str, str]]]:
    """Imports that break the rule, and the exceptions that were made use of."""
    wrong: list[str] = []
    used: set[tuple[str, str]] = set()
    for path in sorted(root.rglob("*.py")):
        for found in imports_of(path, root):
            here = found.module.partition(".")[0]
            if here == "__init__":
                allowed = found.imported in FRONT_DOOR
            elif found.imported == "vmamba":  # its version, its path: only where it is whole already
                allowed = FLOOR[here] > max(FLOOR[name] for name in FRONT_DOOR)
            else:
                allowed = here == found.imported or FLOOR[found.imported] < FLOOR[here]
            if not allowed and found.lazy and (found.module, found.imported) in LAZY_UPWARD:
                used.add((found.module, found.imported))
            elif not allowed:
                wrong.append(str(found))
    return wrong, used


def test_every_module_has_a_floor() -> None:
    names = {module_name(path).partition(".")[0] for path in ROOT.rglob("*.py")} - {"__init__"}
    assert names <= set(FLOOR), f"put {sorted(names - set(FLOOR))} on a floor"


def test_a_floor_imports_only_from_floors_below() -> None:
    wrong, _ = faults()
    assert wrong == []


def test_every_lazy_exception_names_a_module() -> None:
    modules = {module_name(path) for path in ROOT.rglob("*.py")}
    assert {module for module, _ in LAZY_UPWARD} <= modules


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("ops/a.py", "import torch\nfrom vmamba.layers import SS2D", "ops.a (line 2) imports layers"),
        ("ops/a.py", "def f():\n    import vmamba.models.vssm", "ops.a (line 2) imports models"),
        ("layers/a.py", "from vmamba import models", "layers.a (line 1) imports models"),
        ("layers/a.py", "from vmamba import SS2D", "layers.a (line 1) imports vmamba"),
        ("layers/b/c.py", "from ...tasks import train", "layers.b.c (line 1) imports tasks"),
        ("layers/b/__init__.py", "from ...tasks import train", "layers.b (line 1) imports tasks"),
        (
            "models/backbone.py",
            "from vmamba.weights import load_weights",
            "models.backbone (line 1) imports checkpoints",
        ),
        ("models/vssm.py", "def f():\n    from vmamba import checkpoints", "models.vssm (line 2) imports checkpoints"),
        ("checkpoints/a.py", "from vmamba.heads import upernet", "checkpoints.a (line 1) imports heads"),
        ("data/a.py", "from vmamba.train.run import train", "data.a (line 1) imports tasks"),
        ("errors.py", "import vmamba.scan", "errors (line 1) imports ops"),
        ("__init__.py", "from vmamba.tasks import train", "__init__ (line 1) imports tasks"),
        ("models/backbone.py", "def f():\n    from vmamba.weights import load_weights", None),
        ("layers/a.py", "from vmamba.scan.ss2d_scan import ss2d_scan\nfrom .b import c\nfrom . import d", None),
        (
            "layers/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vmamba.models import VSSM",
            None,
        ),
        ("tasks/a.py", "from vmamba import __version__\nfrom vmamba.data import read_image", None),
    ],
)
def test_the_rule_itself(tmp_path: Path, module: str, source: str, fault: str | None) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert faults(tmp_path)[0] == ([] if fault is None else [fault])


def test_import_vmamba_stays_light() -> None:
    script = (
        "import json, sys, torch; before = set(sys.modules); import vmamba; "
        "print(json.dumps([sorted(before), sorted(sys.modules)]))"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert out.stderr == ""
    before, after = (set(names) for names in json.loads(out.stdout))
    loaded = {name.partition(".")[0] for name in after - before}
    assert loaded & HEAVY == set()
    floors = {name.split(".")[1] for name in after if name.startswith("vmamba.")}
    assert floors <= FRONT_DOOR
