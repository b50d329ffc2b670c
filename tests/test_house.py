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
    {"version", "errors"},
    {"_torch", "output", "device", "given", "typed", "flops"},
    {"kernels"},
    {"scan"},
    {"functional", "ops"},
    {"layers"},
    {"architecture"},
    {"weights"},
    {"models"},
    {"heads"},
    {"zoo"},
    {"inference"},
    {"data"},
    {"tasks"},
    {"evaluate"},
    {"train"},
    {"export"},
    {"analysis", "bench", "migrate", "integrations", "segment", "detect"},
    {"demo"},
    {"timm"},
    {"app"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

#: The front door re-exports from these, and nothing imports it.
FRONT_DOOR = {
    "version", "errors", "_torch", "output", "flops", "kernels", "scan", "functional", "layers", "architecture",
    "weights", "models", "heads", "zoo", "inference",
}  # fmt: skip

#: And these it loads when they are asked for.
BEHIND_THE_DOOR = {"train", "evaluate", "analysis"}

HEAVY = {
    "accelerate", "huggingface_hub", "jsonargparse", "matplotlib", "rich", "safetensors", "sklearn", "timm",
    "pycocotools", "torchmetrics", "torchvision", "triton", "yaml",
}  # fmt: skip


class Import(NamedTuple):
    module: str  # "models.vssm"
    targets: tuple[str, ...]  # what it may name, "layers.ss2d" or "layers.ss2d.SS2D"
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
            elif isinstance(child, ast.ImportFrom):
                parents = ["vmamba", *package[: len(package) - child.level + 1]] if child.level else []
                base = ".".join([*parents, *filter(None, [child.module])])
                names = [f"{base}.{alias.name}" for alias in child.names]
            for name in names:
                first, _, rest = name.partition(".")
                if first == "vmamba":
                    part = rest.partition(".")[0]
                    targets = (rest, rest.rpartition(".")[0])
                    yield Import(module, targets, part if part in FLOOR else "vmamba", child.lineno, lazy)
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for other in child.orelse:
                    yield from walk(other, lazy)
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), lazy=False)


def faults(root: Path = ROOT) -> list[str]:
    """Imports that break the rule, lazy ones too."""
    wrong: list[str] = []
    for path in sorted(root.rglob("*.py")):
        for found in imports_of(path, root):
            here = found.module.partition(".")[0]
            if here == "__init__":
                allowed = found.imported in FRONT_DOOR or (found.lazy and found.imported in BEHIND_THE_DOOR)
            else:
                allowed = found.imported != "vmamba" and (here == found.imported or FLOOR[found.imported] < FLOOR[here])
            if not allowed:
                wrong.append(str(found))
    return wrong


def module_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Which modules each module names in its imports, lazy ones too; those only for type checkers are left out."""
    names = {module_name(path, root) for path in root.rglob("*.py")}
    # `from vmamba.scan import dispatch` names a module, `from vmamba.scan import backend` what one holds.
    return {
        module_name(path, root): {
            next(target for target in found.targets if target in names)
            for found in imports_of(path, root)
            if names.intersection(found.targets)
        }
        for path in root.rglob("*.py")
    }


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = list(graph[start])
        while rest:
            if (name := rest.pop()) not in seen:
                seen.add(name)
                rest += graph[name]
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_every_module_has_a_floor() -> None:
    names = {module_name(path).partition(".")[0] for path in ROOT.rglob("*.py")} - {"__init__"}
    assert names <= set(FLOOR), f"put {sorted(names - set(FLOOR))} on a floor"


def test_a_floor_imports_only_from_floors_below() -> None:
    assert faults() == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(module_graph()) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from vmamba.b import g")
    (tmp_path / "b.py").write_text("import vmamba.c.d")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/d.py").write_text("from vmamba import a")
    (tmp_path / "e.py").write_text("from vmamba import a")
    assert circles(module_graph(tmp_path)) == ["a", "b", "c.d"]


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("scan/a.py", "import torch\nfrom vmamba.layers import SS2D", "scan.a (line 2) imports layers"),
        ("scan/a.py", "def f():\n    import vmamba.models.vssm", "scan.a (line 2) imports models"),
        ("layers/a.py", "from vmamba import models", "layers.a (line 1) imports models"),
        ("layers/a.py", "from vmamba import SS2D", "layers.a (line 1) imports vmamba"),
        ("layers/b/c.py", "from ...tasks import train", "layers.b.c (line 1) imports tasks"),
        ("layers/b/__init__.py", "from ...tasks import train", "layers.b (line 1) imports tasks"),
        ("weights/a.py", "def f():\n    from vmamba.models import VSSM", "weights.a (line 2) imports models"),
        ("weights/a.py", "from vmamba.heads import upernet", "weights.a (line 1) imports heads"),
        ("data/a.py", "from vmamba.train.run import train", "data.a (line 1) imports train"),
        ("errors.py", "import vmamba.scan", "errors (line 1) imports scan"),
        ("train/a.py", "from vmamba import __version__", "train.a (line 1) imports vmamba"),
        ("__init__.py", "from vmamba.train import run", "__init__ (line 1) imports train"),
        ("__init__.py", "def f():\n    from vmamba.cli import main", "__init__ (line 2) imports cli"),
        ("__init__.py", "def f():\n    import vmamba.train", None),
        ("models/backbone.py", "from vmamba.weights import load_weights", None),
        ("layers/a.py", "from vmamba.scan.ss2d_scan import ss2d_scan\nfrom .b import c\nfrom . import d", None),
        (
            "layers/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vmamba.models import VSSM",
            None,
        ),
        ("train/a.py", "from vmamba.version import __version__\nfrom vmamba.data import read_image", None),
    ],
)
def test_the_rule_itself(tmp_path: Path, module: str, source: str, fault: str | None) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert faults(tmp_path) == ([] if fault is None else [fault])


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
