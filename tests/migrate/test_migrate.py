"""`vmamba migrate`: byte-exact expectations for each language, and that nothing is ever half-written."""

from __future__ import annotations

import ast
import codecs
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from vmamba.errors import ConfigError, DataError, OutputError, VMambaError
from vmamba.migrate.files import TARGETS, FileChange, apply, plan, run_migrate
from vmamba.scan.dispatch import check_name


def planned(tmp_path: Path, name: str, content: bytes | str, to: str = "oflex") -> FileChange:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (change,) = plan([path], to)
    return change


def migrated(tmp_path: Path, name: str, content: bytes | str, to: str = "oflex") -> bytes:
    """The bytes on disk after the change; a second plan must find nothing more to write."""
    change = planned(tmp_path, name, content, to)
    assert not change.error
    apply(change)
    (again,) = plan([change.path], to)
    assert not again.changes
    assert not again.findings
    return change.path.read_bytes()


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, highlight=False), out


# «core» marks what must be rewritten, and nothing else may change.
PYTHON = [
    'model = VSSM(dims=96, selective_scan_backend="«core»")',
    "model = VSSM(selective_scan_backend='«core»', norm_layer='core')  # selective_scan_backend='core'",
    'VSSM(\n    depths=[2, 2],\n    selective_scan_backend="«core»",  # fast\n)\n',
    'selective_scan_backend = "«core»"',
    'SELECTIVE_SCAN_BACKEND: str = "«core»"',
    'cfg.selective_scan_backend = "«core»"',
    'cfg.MODEL.VSSM.SELECTIVE_SCAN_BACKEND = "«core»"',
    'cfg["selective_scan_backend"] = "«core»"',
    "cfg['model']['selective_scan_backend'] = '«core»'",
    'cfg = {"a": "core", "selective_scan_backend": "«core»", "b": {"selective_scan_backend": "«core»"}}',
    "cfg = {'selective_scan_backend': '«core»'}",
    'cfg = dict(selective_scan_backend="«core»", other="core")',
    'def build(dims, selective_scan_backend="«core»", other="core"): ...',
    'def build(dims, /, *, a="core", selective_scan_backend="«core»"): ...',
    'async def build(selective_scan_backend: str | None = "«core»"): ...',
    'build = lambda selective_scan_backend="«core»": None',
    'class Config:\n    selective_scan_backend: str = "«core»"\n    other: str = "core"\n',
    'class Config:\n    selective_scan_backend: str = field(default="«core»", metadata={"a": 1})\n',
    'class Config:\n    selective_scan_backend: str = Field("«core»", alias="x")\n',
    'class Config:\n    selective_scan_backend: str = field(default_factory=lambda: "«core»")\n',
    'class Model(Base, selective_scan_backend="«core»"): ...',
    'parser.add_argument("--selective_scan_backend", type=str, default="«core»")',
    'parser.add_argument("-s", "--selective-scan-backend", default=\'«core»\', help="core")',
    'parser.set_defaults(selective_scan_backend="«core»")',
    'x = args.selective_scan_backend or "«core»"',
    'VSSM(selective_scan_backend="«core»" if torch.cuda.is_available() else "torch")',
    'VSSM(selective_scan_backend=given or "«core»")',
    'name = cfg.get("selective_scan_backend") or "«core»"',
    'if (selective_scan_backend := "«core»"): ...',
    'a, selective_scan_backend = "core", "«core»"',
    'setattr(cfg, "selective_scan_backend", "«core»")',
    'kwargs.setdefault("selective_scan_backend", "«core»")',
    'kwargs.get("selective_scan_backend", "«core»")',
    'os.environ["VMAMBA_SELECTIVE_SCAN_BACKEND"] = "«core»"',
    'monkeypatch.setenv("VMAMBA_SELECTIVE_SCAN_BACKEND", "«core»")',
    'subprocess.run(["python", "main.py", "--selective_scan_backend", "«core»", "core"])',
    'cfg.merge_from_list(["MODEL.VSSM.SELECTIVE_SCAN_BACKEND", "«core»"])',
    'functools.partial(VSSM, selective_scan_backend="«core»")',
    'selective_scan_fn(u, dt, A, B, C, backend="«core»")',
    'ops.selective_scan(u, dt, A, B, C, backend="«core»")',
    'cross_selective_scan(x, None, backend="«core»")',
    'SelectiveScan.apply(u, backend="core")',
    'partial(selective_scan_fn, backend="«core»")',
    'from vmamba import selective_scan_fn as scan\nscan(u, backend="«core»")\nother(u, backend="core")',
    'from functools import partial as p\np(selective_scan_fn, backend="«core»")',
    'VSSM(selective_scan_backend=r"«core»")',
    'VSSM(selective_scan_backend="""«core»""")',
    'VSSM(selective_scan_backend=("«core»"))',
    'VSSM(selective_scan_backend="«\\x63ore»")',
    'x = "é𝛿"; VSSM("ü", selective_scan_backend="«core»", y="é")  # 日本',
    'if x:\n\tcfg.selective_scan_backend\t=\t"«core»"\t# tab\n',
    'x = """\nselective\n"""; cfg.selective_scan_backend = "«core»"',
    'x = 1\x0c\ncfg.selective_scan_backend = "«core»"\n',
]

PYTHON_UNTOUCHED = [
    '"""VSSM(selective_scan_backend="core")"""',
    'def f():\n    """Use selective_scan_backend="core" for speed."""\n',
    '# selective_scan_backend = "core"\n',
    'selective_scan_backend = "oflex"',
    "VSSM(selective_scan_backend=None)",
    'VSSM(selective_scan_backend="hardcore")',
    'VSSM(selective_scan_backend="Core")',
    'VSSM(selective_scan_backend=b"core")',
    'VSSM(other_selective_scan_backend="core", backend="core")',
    'fft(x, backend="core")',
    "VSSM(selective_scan_backend=selective_scan_backend)",
    "VSSM(selective_scan_backend=self.selective_scan_backend)",
    'VSSM(selective_scan_backend=cfg["selective_scan_backend"])',
    'VSSM(selective_scan_backend=kwargs.pop("selective_scan_backend", None))',
    'NAME = "torch"\nVSSM(selective_scan_backend=NAME)',
    'x = "core"',
    "{**base, 'x': 'core'}",
    'if backend == "core": ...',
    "",
]

PYTHON_BY_HAND = [
    ('BACKEND = "core"\nVSSM(selective_scan_backend=BACKEND)', 2, 'BACKEND is "core" at line 1'),
    ('def f(b="core"):\n    return VSSM(selective_scan_backend=b)', 2, 'b is "core" at line 1'),
    ('x = args.selective_scan_backend or pick("core")', 1, 'holds "core"'),
    ("VSSM(selective_scan_backend=backend)", 1, "backend cannot be resolved"),
    ('b = "torch"\nb = pick()\nVSSM(selective_scan_backend=b)', 3, "b cannot be resolved"),
    ('def f(b="torch"):\n    return VSSM(selective_scan_backend=b)', 2, "b cannot be resolved"),
    ('VSSM(selective_scan_backend=f"{name}")', 1, "f-string"),
    ('VSSM(selective_scan_backend=f"core")', 1, "f-string"),
    ("VSSM(selective_scan_backend=pick())", 1, "cannot be resolved"),
    ('VSSM(selective_scan_backend=pick("core"))', 1, 'holds "core"'),
    ('VSSM(selective_scan_backend="co" "re")', 1, "in pieces"),
    ('VSSM(selective_scan_backend="co" + "re")', 1, "cannot be resolved"),
    ('x = cfg.selective_scan_backend = "core"', 1, "another variable"),
    ('if cfg.selective_scan_backend == "core": ...', 1, "comparison"),
    ('assert selective_scan_backend in [None, "core"]', 1, "comparison"),
    ('match selective_scan_backend:\n    case "core": ...', 2, "comparison"),
    ('add_argument("--selective_scan_backend", choices=["core", "oflex"])', 1, "choices="),
    ('SPACE = {"selective_scan_backend": ["core", "oflex"]}', 1, "one of several"),
    ('for selective_scan_backend in ("core", "oflex"): ...', 1, "one of several"),
    ('[f(b) for cfg.selective_scan_backend in ["core"]]', 1, "one of several"),
    ('@pytest.mark.parametrize("selective_scan_backend", ["core"])\ndef f(): ...', 1, "after the option's name"),
    ('__slots__ = ("selective_scan_backend", "core")', 1, "after the option's name"),
    ('def f(selective_scan_backend: Literal["core"]): ...', 1, "type annotation"),
    ('def selective_scan_fn(u, backend="core"): ...', 1, "own definition"),
    ('os.system("python main.py --selective_scan_backend core")', 1, "longer string"),
    ('cli(["--selective_scan_backend=core"])', 1, "longer string"),
    ('x = \'{"selective_scan_backend": "core"}\'', 1, "longer string"),
    ("x = f\"{dict(selective_scan_backend='core')}\"", 1, "f-string"),
    ('VSSM(selective_scan_backend="core,oflex")', 1, "among other words"),
]

YAML = [
    "selective_scan_backend: «core»",
    "selective_scan_backend: «core»   # core\nother: core\n",
    'model:\n  vssm:\n    selective_scan_backend: "«core»"\n    norm: core\n',
    "MODEL:\n  VSSM:\n    SELECTIVE_SCAN_BACKEND: '«core»'\n",
    "model: {dims: 96, ssm: {a: core, selective_scan_backend: «core»}, b: [core, {selective_scan_backend: '«core»'}]}",
    '{"selective_scan_backend": "«core»"}',
    '"selective_scan_backend" : «core»',
    "? selective_scan_backend\n: «core»\n",
    "selective-scan-backend: «core»",
    "model.selective_scan_backend: «core»",
    "a: core\n---\nselective_scan_backend: «core»\n...\n---\n- selective_scan_backend: «core»\n",
    "base: &base\n  selective_scan_backend: «core»\nderived:\n  <<: *base\n  x: core\n",
    "selective_scan_backend: &it «core»\nb: {selective_scan_backend: *it}\n",
    "selective_scan_backend: !!str «core»",
    "selective_scan_backend: !!str &x '«core»'",
    'selective_scan_backend: "«c\\x6fre»"',
    "selective_scan_backend: >- # core\n  «core»\n",
    "selective_scan_backend: |-\n  «core»\n",
    "selective_scan_backend:\n  «core»\n",
    "é: 日本\n𝛿: {selective_scan_backend: «core»}\n",
    "model: !Config\n  selective_scan_backend: «core»\n",
    "args: [--selective_scan_backend, «core», core]",
    "args:\n- --selective-scan-backend\n- «core»\n",
    "env:\n  VMAMBA_SELECTIVE_SCAN_BACKEND: «core»\n",
    "loop: &l [*l, {selective_scan_backend: «core»}]",
    "selective_scan_backend: '«core»'\n\n\n",
]

YAML_UNTOUCHED = [
    "# selective_scan_backend: core\nx: core",
    "selective_scan_backend: oflex",
    "selective_scan_backend:",
    "selective_scan_backend: hardcore",
    "backend: core",
    "selective_scan_backend_core: core",
    "fields: [selective_scan_backend, core]",
    "",
    "---\n---\n",
]

YAML_BY_HAND = [
    ("x: &k core\nselective_scan_backend: *k\n", 1, "anchor"),
    ("selective_scan_backend: &k core\nx: *k\n", 1, "anchor"),
    ("selective_scan_backend: [core, oflex]", 1, "one of several"),
    ("selective_scan_backend:\n  values:\n  - oflex\n  - core\n", 4, "one of several"),
    ("selective_scan_backend: core,oflex", 1, "among other words"),
    ("selective_scan_backend: ${oc.env:BACKEND,torch}", 1, "filled in"),
    ("run: |\n  # a\n  python main.py --selective_scan_backend core\n", 3, "longer string"),
    ("overrides:\n- model.selective_scan_backend=core\n", 2, "longer string"),
]

JSON = [
    '{"selective_scan_backend": "«core»"}',
    '{"a": "core", "m": {"selective_scan_backend" :\n\t"«core»" , "l": [1, {"selective_scan_backend":"«core»"}]}}\n',
    '{"selective\\u005fscan_backend": "«\\u0063ore»", "x": "a \\"selective_scan_backend\\": \\\\"}',
    '[["é\\n", "𝛿"], {"SELECTIVE_SCAN_BACKEND": "«core»"}]',
    '{"args": ["--selective_scan_backend", "«core»", "core"]}',
]

JSON_UNTOUCHED = [
    '{"selective_scan_backend": null, "core": "core"}',
    '{"x": "selective_scan_backend", "y": "core"}',
    '["selective_scan_backend", "core"]',
    '"core"',
    "12",
    "{}",
    '{"selective_scan_backend": 1, "NaN": NaN}',
]

REWRITES = [(".py", s) for s in PYTHON] + [(".yaml", s) for s in YAML] + [(".json", s) for s in JSON]
UNTOUCHED = (
    [(".py", s) for s in PYTHON_UNTOUCHED]
    + [(".yml", s) for s in YAML_UNTOUCHED]
    + [(".json", s) for s in JSON_UNTOUCHED]
)
BY_HAND = [(".py", *row) for row in PYTHON_BY_HAND] + [(".yaml", *row) for row in YAML_BY_HAND]


def before(marked: str) -> str:
    return marked.replace("«", "").replace("»", "")


def after(marked: str, to: str = "oflex") -> str:
    parts = marked.split("«")
    return parts[0] + "".join(to + part.split("»", 1)[1] for part in parts[1:])


@pytest.mark.parametrize(("suffix", "marked"), REWRITES)
@pytest.mark.parametrize("to", ["oflex", "mamba"])
def test_only_the_value_changes(tmp_path: Path, suffix: str, marked: str, to: str) -> None:
    assert migrated(tmp_path, f"f{suffix}", before(marked), to).decode() == after(marked, to)


@pytest.mark.parametrize(("suffix", "marked"), [row for row in REWRITES if "\n" in row[1]])
@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_other_line_endings_and_byte_order_marks_stay(tmp_path: Path, suffix: str, marked: str, ending: str) -> None:
    marked = marked.replace("\n", ending)
    got = migrated(tmp_path, f"f{suffix}", codecs.BOM_UTF8 + before(marked).encode())
    assert got == codecs.BOM_UTF8 + after(marked).encode()


@pytest.mark.parametrize(("suffix", "text"), UNTOUCHED)
def test_nothing_to_do(tmp_path: Path, suffix: str, text: str) -> None:
    change = planned(tmp_path, f"f{suffix}", text)
    assert not change.error
    assert not change.changes
    assert not change.findings
    assert not change.by_hand


@pytest.mark.parametrize(("suffix", "text", "line", "words"), BY_HAND)
def test_what_cannot_be_resolved_is_reported_and_left_alone(
    tmp_path: Path, suffix: str, text: str, line: int, words: str
) -> None:
    change = planned(tmp_path, f"f{suffix}", text)
    assert not change.changes
    (finding,) = change.by_hand
    assert finding.line == line
    assert words in str(finding)
    assert str(finding).startswith(f"{change.path}:{line}:")
    assert text.splitlines()[line - 1].strip() == finding.text


def test_positions_are_in_characters_from_one(tmp_path: Path) -> None:
    change = planned(tmp_path, "f.py", 'x = 1\n\n"é𝛿"; cfg.selective_scan_backend = "core"\n')
    (finding,) = change.findings
    assert (finding.line, finding.column, finding.kind) == (3, 37, "assignment")


def test_a_parser_sees_the_same_program_but_for_the_value(tmp_path: Path) -> None:
    source = "\n".join(before(s) for s in PYTHON if "async" not in s)
    got = migrated(tmp_path, "f.py", source).decode()
    expected = "\n".join(after(s) for s in PYTHON if "async" not in s)
    assert ast.dump(ast.parse(got)) == ast.dump(ast.parse(expected))


@pytest.mark.parametrize(
    "data",
    [
        '# -*- coding: latin-1 -*-\nx = "é"; cfg.selective_scan_backend = "core"  # ü\n'.encode("latin-1"),
        '#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\nx = "€"; selective_scan_backend = "core"\n'.encode(
            "cp1252"
        ),
        '# coding: shift_jis\nx = "日本語"; selective_scan_backend = "core"\n'.encode("shift_jis"),
        codecs.BOM_UTF8 + 'x = "é"; selective_scan_backend = "core"'.encode(),
        codecs.BOM_UTF8 + '# coding: utf-8\r\nx = "é"; selective_scan_backend = "core"\r\n'.encode(),
    ],
)
def test_python_source_encodings(tmp_path: Path, data: bytes) -> None:
    assert migrated(tmp_path, "f.py", data) == data.replace(b'"core"', b'"oflex"')


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("suffix", "text"),
    [(".yaml", "é: {selective_scan_backend: core}\n"), (".json", '{"selective_scan_backend": "core"}')],
)
def test_utf_16_data_with_a_mark(tmp_path: Path, encoding: str, suffix: str, text: str) -> None:
    data = ("\ufeff" + text).encode(encoding)
    assert migrated(tmp_path, f"f{suffix}", data) == data.replace("core".encode(encoding), "oflex".encode(encoding))


def test_json_lines(tmp_path: Path) -> None:
    text = '{"selective_scan_backend": "core"}\r\n\n{"x": "core"}\n{"é": {"selective_scan_backend": "core"}}'
    want = text.replace('d": "core"', 'd": "oflex"')
    assert migrated(tmp_path, "f.jsonl", text).decode() == want
    assert "line 2" in planned(tmp_path, "g.jsonl", '{}\n{"selective_scan_backend": core}').error


# Notebooks


def notebook(*cells: str | list[str], language: str = "python", **dump: Any) -> str:
    body = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": cell} for cell in cells]
    prose = {"cell_type": "markdown", "source": ['selective_scan_backend="core"']}
    metadata = {"kernelspec": {"language": language}}
    return json.dumps({"cells": [prose, *body], "metadata": metadata, "nbformat": 4}, **dump)


@pytest.mark.parametrize("dump", [{}, {"indent": 1}, {"ensure_ascii": False}])
def test_notebook_code_cells(tmp_path: Path, dump: dict[str, Any]) -> None:
    cells: list[str | list[str]] = [
        [
            "%matplotlib inline\n",
            "# selective_scan_backend='core'\n",
            'x = "é𝛿\\n"; m = VSSM(selective_scan_backend="core")',
        ],
        "!pip install vmamba\ncfg['selective_scan_backend'] = 'core'\n",
        "%%time\nVSSM(selective_scan_backend='core')",
        ['x = ("%s"\n', "     % 1); selective_scan_backend = 'core'\n"],
    ]
    untouched = ["%%bash\npython main.py --selective_scan_backend core", "plain = 'core'"]
    text = notebook(*cells, *untouched, **dump)
    change = planned(tmp_path, "f.ipynb", text)
    assert [finding.kind.rpartition(" in ")[2] for finding in change.findings] == [
        f"code cell {i}" for i in range(1, 5)
    ]
    want = text
    for old in (
        'selective_scan_backend=\\"core\\")"',
        "'selective_scan_backend'] = 'core'",
        "backend='core')\"",
        "backend = 'core'\\n",
    ):
        assert old in want
        want = want.replace(old, old.replace("core", "oflex"))
    assert migrated(tmp_path, "f.ipynb", text).decode() == want


def test_notebook_cells_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    change = planned(
        tmp_path, "f.ipynb", notebook("def (: selective_scan_backend = 'core'", "selective_scan_backend = x")
    )
    assert not change.changes
    assert ["does not parse" in str(finding) for finding in change.by_hand] == [True, False]
    assert "code cell 2" in str(change.by_hand[1])


def test_a_value_torn_between_two_strings_of_a_cell_is_left_alone(tmp_path: Path) -> None:
    change = planned(tmp_path, "f.ipynb", notebook(['selective_scan_backend = "co\\\n', 're"']))
    assert not change.changes
    assert [finding.note for finding in change.by_hand] == ["spread over several lines"]


def test_notebooks_of_other_languages_are_left_alone(tmp_path: Path) -> None:
    change = planned(tmp_path, "f.ipynb", notebook('VSSM(selective_scan_backend="core")', language="julia"))
    assert not change.changes


# Properties: a parser reads the result as the original with exactly the option's value replaced.

_WORDS = st.sampled_from(
    ["core", "selective_scan_backend", "x", 'a"b', "é\n", "𝛿\\", "oflex", "SELECTIVE_SCAN_BACKEND"]
)
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=12,
)


def replaced(document: Any) -> Any:
    if isinstance(document, list):
        return [replaced(item) for item in document]
    if isinstance(document, dict):
        return {
            key: "oflex" if value == "core" and key.lower() == "selective_scan_backend" else replaced(value)
            for key, value in document.items()
        }
    return document


@settings(derandomize=True, deadline=None, max_examples=150)
@given(_DOCUMENTS, st.sampled_from([None, 1]), st.booleans())
def test_json_property(
    tmp_path_factory: pytest.TempPathFactory, document: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    got = migrated(tmp_path_factory.mktemp("json"), "f.json", text).decode()
    assert got == json.dumps(replaced(document), indent=indent, ensure_ascii=ascii_only)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(_DOCUMENTS, st.booleans() | st.none(), st.sampled_from([None, '"', "'"]))
def test_yaml_property(
    tmp_path_factory: pytest.TempPathFactory, document: Any, flow: bool | None, style: str | None
) -> None:
    text = yaml.safe_dump(document, default_flow_style=flow, default_style=style, allow_unicode=True, width=30)
    got = migrated(tmp_path_factory.mktemp("yaml"), "f.yaml", text).decode()
    assert yaml.safe_load(got) == replaced(document)


# Files and folders


def tree(root: Path) -> None:
    (root / "sub").mkdir(parents=True)
    (root / "a.py").write_text('VSSM(selective_scan_backend="core")\n')
    (root / "sub" / "b.YAML").write_text("selective_scan_backend: core\n")
    (root / "sub" / "c.py").write_text('def broken(:\n    selective_scan_backend="core"\n')
    (root / "sub" / "d.py").write_text("def broken(:\n")
    (root / "notes.txt").write_text('selective_scan_backend="core"\n')
    (root / "blob.json").write_bytes(b'\0\1{"selective_scan_backend": "core"}')
    for folder in (".git", ".venv", "node_modules", "__pycache__", "sub/myenv"):
        (root / folder).mkdir()
        (root / folder / "x.py").write_text('VSSM(selective_scan_backend="core")\n')
    (root / "sub" / "myenv" / "pyvenv.cfg").write_text("")


def test_a_folder_is_walked_and_broken_files_are_named(tmp_path: Path) -> None:
    tree(tmp_path)
    changes = {str(change.path.relative_to(tmp_path)): change for change in plan([tmp_path])}
    assert set(changes) == {"a.py", "sub/b.YAML", "sub/c.py", "sub/d.py"}
    assert changes["a.py"].changes
    assert changes["sub/b.YAML"].changes
    assert "line 1" in changes["sub/c.py"].error
    assert changes["sub/c.py"].mentioned
    assert not changes["sub/d.py"].mentioned


def test_run_shows_then_writes_then_has_nothing_to_do(tmp_path: Path) -> None:
    tree(tmp_path)
    snapshot = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    screen, out = console()
    assert run_migrate([tmp_path], "oflex", write=False, console=screen) == 1
    said = out.getvalue()
    assert '-VSSM(selective_scan_backend="core")\n+VSSM(selective_scan_backend="oflex")\n' in said
    assert "--write" in said
    assert f"{tmp_path}/sub/c.py: does not parse: line 1" in said
    assert f"{tmp_path}/sub/d.py: does not parse: line 1" in said
    assert snapshot == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (tmp_path / "sub" / "c.py").unlink()
    screen, out = console()
    assert run_migrate([tmp_path], "mamba", write=True, console=screen) == 0
    assert (tmp_path / "a.py").read_text() == 'VSSM(selective_scan_backend="mamba")\n'
    assert (tmp_path / "sub" / "b.YAML").read_text() == "selective_scan_backend: mamba\n"
    assert (tmp_path / ".venv" / "x.py").read_bytes() == snapshot[tmp_path / ".venv" / "x.py"]
    assert not list(tmp_path.rglob("*.tmp"))

    screen, out = console()
    assert run_migrate([tmp_path], "oflex", write=False, console=screen) == 0
    assert "nothing to migrate" in out.getvalue()


def test_a_broken_file_that_mentions_a_backend_makes_exit_code_1(tmp_path: Path) -> None:
    tree(tmp_path)
    assert run_migrate([tmp_path], "oflex", write=True, console=console()[0]) == 1
    assert (tmp_path / "sub" / "b.YAML").read_text() == "selective_scan_backend: oflex\n"


def test_by_hand_is_printed_with_file_and_line_and_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nVSSM(selective_scan_backend=pick())\n")
    screen, out = console()
    assert run_migrate([tmp_path / "a.py"], "oflex", write=False, console=screen) == 0
    assert f"look at this by hand: {tmp_path}/a.py:2:29:" in out.getvalue()


def patched(old: str, diff: str) -> str:
    """Apply a unified diff; every line that it shows must be there, at the place that it says."""
    lines, out, at = re.split(r"(?<=\n)", old), [], 0
    header, *hunks = re.split(r"(?m)^(?=@@ )", diff)
    assert header == "--- f.py\n+++ f.py\n"
    for hunk in hunks:
        ended = hunk.replace("\n\\ No newline at end of file\n", "\0")
        head, *body = (line.rstrip("\0") for line in re.split(r"(?<=[\n\0])", ended))
        match = re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n", head)
        assert match
        out += lines[at : int(match[1]) - 1]
        at = int(match[1]) - 1
        for line in filter(None, body):
            if line[0] in " -":
                assert lines[at] == line[1:]
                at += 1
            if line[0] in " +":
                out.append(line[1:])
    return "".join(out + lines[at:])


@pytest.mark.parametrize(
    "data",
    [
        b'\tcfg.selective_scan_backend = "core"'.lstrip(b"\t"),
        b'if x:\r\n\tselective_scan_backend = "core"\t# \x0c tab\r\ny = 1\r\n',
        b"a = 1\n" * 30 + b'selective_scan_backend = "core"\n' + b"b = 1\n" * 30 + b'SELECTIVE_SCAN_BACKEND = "core"\n',
    ],
)
def test_the_printed_diff_is_a_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("f.py")
    path.write_bytes(data)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "utf-8", newline="")
    run_migrate([path], "oflex", write=False, console=Console(file=out, width=20))
    out.flush()
    diff = re.split(r"(?m)^assignment at ", raw.getvalue().decode())[0]
    assert patched(data.decode(), diff) == data.replace(b"core", b"oflex").decode()


def test_symbolic_links_stay_and_their_target_changes_once(tmp_path: Path) -> None:
    target = tmp_path / "real" / "a.py"
    target.parent.mkdir()
    target.write_text('selective_scan_backend = "core"\n')
    link = tmp_path / "link.py"
    link.symlink_to(target)
    assert len(plan([tmp_path])) == 1
    (change,) = plan([link])
    apply(change)
    assert link.is_symlink()
    assert target.read_text() == 'selective_scan_backend = "oflex"\n'


def test_mode_bits_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('selective_scan_backend = "core"\n')
    path.chmod(0o751)
    (change,) = plan([path])
    apply(change)
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_failing_write_leaves_the_file_and_no_litter_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text('selective_scan_backend = "core"\n')
    real, calls = getattr(os, call), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OutputError, match=r"b\.py: No space left on device.*as it was"):
        run_migrate([tmp_path], "oflex", write=True, console=console()[0])
    assert [(tmp_path / name).read_text()[26:30] for name in ("a.py", "b.py", "c.py")] == ["ofle", "core", "ofle"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "b.py", "c.py"]


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_text('selective_scan_backend = "core"\n')
    (change,) = plan([path])
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anything
    with pytest.raises(OutputError, match="read-only"):
        apply(change)
    assert path.read_text() == 'selective_scan_backend = "core"\n'


def test_a_file_that_changed_since_is_not_overwritten(tmp_path: Path) -> None:
    change = planned(tmp_path, "a.py", 'selective_scan_backend = "core"\n')
    change.path.write_text("mine\n")
    with pytest.raises(OutputError, match="changed while"):
        apply(change)
    assert change.path.read_text() == "mine\n"
    change.path.unlink()
    with pytest.raises(OutputError, match="No such file"):
        apply(change)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.py", b"# coding: nonsense\nselective_scan_backend = 'core'", "nonsense"),
        ("a.py", b"selective_scan_backend = 'core' # \xff", "utf-8"),
        ("a.py", b"selective_scan_backend = 'core'\0", "not text"),
        ("a.yaml", b"selective_scan_backend: core # \xff", "not utf-8"),
        ("a.yaml", b"a: [selective_scan_backend\n", "line 2"),
        ("a.yaml", b"a: b: selective_scan_backend\n", "line 1: mapping values are not allowed here"),
        ("a.yaml", b"selective_scan_backend: core\x07\n", "special characters"),
        ("a.json", b'{"selective_scan_backend": core}', "line 1"),
        ("a.json", b"", "line 1"),
        ("a.json", b"[" * 200_000, "nested"),
        ("a.json", b'{"selective_scan_backend": ' + b"1" * 5000 + b"}", "digits"),
        ("a.py", b"(" * 1000, "nested"),
    ],
)
def test_files_that_do_not_parse_say_why(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    change = planned(tmp_path, name, data)
    assert words in change.error
    assert not change.changes
    assert change.path.read_bytes() == data


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    good = tmp_path / "config.yaml"
    good.write_text("selective_scan_backend: core\n")
    text = tmp_path / "notes.txt"
    text.write_text("x")
    link = tmp_path / "gone.py"
    link.symlink_to(tmp_path / "nowhere.py")
    screen = console()[0]
    for paths, to, kind, words in [
        ([good, tmp_path / "confg.yaml"], "oflex", DataError, r"does not exist; did you mean 'config\.yaml'"),
        ([good, tmp_path / "no" / "x.py"], "oflex", DataError, "does not exist"),
        ([good, text], "oflex", ConfigError, r"'\.txt'.*\.py, .*\.yaml"),
        ([good, link], "oflex", DataError, r"link to .*nowhere\.py"),
        ([good], "core", ConfigError, "removed; legal: oflex, mamba, torch"),
        ([good], "oflx", ConfigError, "legal: oflex, mamba, torch; did you mean 'oflex'"),
        ([], "oflex", ConfigError, "nothing to look at"),
    ]:
        with pytest.raises(kind, match=words) as caught:
            run_migrate(paths, to, write=True, console=screen)
        assert isinstance(caught.value, VMambaError)
    assert good.read_text() == "selective_scan_backend: core\n"


def test_large_files_of_a_folder_without_a_mention_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b"[" + b"1, " * 200_000)
    (tmp_path / "late.json").write_bytes(b'{"x": "' + b"y" * 2_000_000 + b'", "selective_scan_backend": "core"}')
    data, late = plan([tmp_path])
    assert not data.error
    assert late.changes
    (named,) = plan([tmp_path / "data.json"])
    assert named.error


def test_an_unreadable_folder_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.py").write_text('selective_scan_backend = "core"\n')
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    file, folder = plan([tmp_path])
    assert file.changes
    assert folder.path.name == "closed"
    assert folder.error == "Permission denied"


def test_the_result_is_a_legal_backend() -> None:
    for name in TARGETS:
        assert check_name(name) == name
