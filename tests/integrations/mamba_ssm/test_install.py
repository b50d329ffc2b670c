"""Stand-ins come where nothing is, leave what is real alone, and go without a trace."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from vmamba import ConfigError
from vmamba.integrations.mamba_ssm import install, standing, standing_in
from vmamba.integrations.mamba_ssm.stand_in import MARK, StandIn
from vmamba.integrations.mamba_ssm.table import COMPILED, FAMILIES, REFUSED, RELEASES, TABLE, family_of


@pytest.fixture(autouse=True)
def without_real_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that has none of the packages; what a test changes is put back."""
    for name in list(sys.modules):
        if family_of(name) in FAMILIES:
            monkeypatch.delitem(sys.modules, name)
    find = importlib.machinery.PathFinder.find_spec
    here = {str(Path(path)) for path in sys.path}

    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if path is None and name in FAMILIES:
            path = [entry for entry in sys.path if str(Path(entry)) not in here]
        return find(name, path, target)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", find_spec)
    before = list(sys.meta_path), dict(sys.modules), list(standing._layers)
    yield
    assert [name for name, module in sys.modules.items() if isinstance(module, StandIn)] == []
    assert (sys.meta_path, standing._layers) == (before[0], before[2])


def absent(name: str) -> bool:
    return name not in sys.modules and importlib.util.find_spec(name) is None


@pytest.mark.parametrize("name", TABLE)
def test_every_module_of_the_table(name: str) -> None:
    assert absent(family_of(name))
    with standing_in():
        spec = importlib.util.find_spec(name)
        assert spec is not None
        module = importlib.import_module(name)
        assert isinstance(module, StandIn)
        assert module.__spec__ is not None
        assert module.__spec__.name == module.__name__ == name
        assert str(module.__doc__).startswith(f"vmamba's stand-in for {name}: ")
        assert module.__version__.startswith(RELEASES[family_of(name)] + "+vmamba.")
        assert getattr(module, MARK) is True
        for word in module.__all__:
            assert callable(getattr(module, word)), word
        assert importlib.reload(module) is module
    assert absent(family_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_is_installable_alone(name: str) -> None:
    with standing_in(name):
        importlib.import_module(name)
        assert [other for other in FAMILIES if not absent(other)] == [name]


def test_the_compiled_ones() -> None:
    assert COMPILED == (
        "selective_scan_cuda", "selective_scan_cuda_oflex", "selective_scan_cuda_core", "causal_conv1d_cuda",
    )  # fmt: skip


def test_as_projects_import() -> None:
    with standing_in():
        space: dict[str, object] = {}
        exec("import mamba_ssm\nx = mamba_ssm.ops.selective_scan_interface.selective_scan_fn", space)
        exec("from mamba_ssm import *", space)
        exec("from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, mamba_inner_fn", space)
        exec(
            "from mamba_ssm import Mamba, Mamba2\nfrom causal_conv1d import causal_conv1d_fn, causal_conv1d_update",
            space,
        )
        exec("from mamba_ssm.utils.generation import GenerationMixin\nimport mamba_ssm.utils.hf", space)
        assert space["x"] is space["selective_scan_fn"]
        mamba = space["Mamba"]
        assert pickle.loads(pickle.dumps(mamba)) is mamba
        # A pickle that the real package wrote names its module.
        assert pickle.loads(b"cmamba_ssm.modules.mamba_simple\nMamba\n.") is mamba
        assert dir(sys.modules["mamba_ssm"]) != []


def test_what_is_not_there_is_named_with_what_is() -> None:
    with standing_in():
        import causal_conv1d  # type: ignore[import-not-found]

        message = "vmamba's stand-in for causal_conv1d has no 'causal_conv2d_fn'; it has causal_conv1d_fn, "
        with pytest.raises(AttributeError, match=message):
            causal_conv1d.causal_conv2d_fn  # noqa: B018
        with pytest.raises(ImportError, match=message) as raised:
            exec("from causal_conv1d import causal_conv2d_fn")
        assert raised.value.name == "causal_conv1d"
        assert not hasattr(causal_conv1d, "causal_conv2d_fn")
        assert not hasattr(causal_conv1d, "__file__")
        there = (
            "No module named 'mamba_ssm.ops.nothing': vmamba's stand-in for mamba_ssm.ops has selective_scan_interface"
        )
        with pytest.raises(ModuleNotFoundError, match=there):
            importlib.import_module("mamba_ssm.ops.nothing")
        assert importlib.util.find_spec("mamba_ssm.ops.nothing") is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_alike_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="it is another operator"):
        install(name)
    with standing_in():
        with pytest.raises(ModuleNotFoundError, match="another operator"):
            importlib.import_module(name)
        assert importlib.util.find_spec(name) is None


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=re.escape("'mamba-ssm' has no stand-in; legal: selective_scan_cuda, ")):
        install("mamba-ssm")
    with pytest.raises(ConfigError), standing_in("selective_scan_cuda", "numpy"):
        pass


def test_blocks_may_be_nested() -> None:
    with standing_in("causal_conv1d"):
        outer = importlib.import_module("causal_conv1d")
        with standing_in():
            assert importlib.import_module("causal_conv1d") is outer
            importlib.import_module("mamba_ssm")
        assert sys.modules["causal_conv1d"] is outer
        assert absent("mamba_ssm")
    assert absent("causal_conv1d")


def test_an_error_inside_takes_them_away_too() -> None:
    def fail() -> None:
        with standing_in():
            importlib.import_module("mamba_ssm")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert absent("mamba_ssm")


def test_install_stays_and_may_be_repeated() -> None:
    try:
        install("causal_conv1d")
        install("causal_conv1d")
        install()
        layers = len(standing._layers)
        install("mamba_ssm", "causal_conv1d")
        assert len(standing._layers) == layers == 2
        with standing_in():
            module = importlib.import_module("causal_conv1d")
        assert sys.modules["causal_conv1d"] is module
        importlib.import_module("mamba_ssm")
    finally:
        for layer in list(standing._layers):
            standing._leave(layer)


def real(folder: Path, text: str = "real = True\n", name: str = "mamba_ssm") -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_a_real_package_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real(tmp_path, "import selective_scan_cuda\nkernel = selective_scan_cuda\n")
    monkeypatch.syspath_prepend(tmp_path)
    with standing_in():
        package = importlib.import_module("mamba_ssm")
        assert not isinstance(package, StandIn)
        # It is the compiled module that a shipped package lacks.
        assert isinstance(package.kernel, StandIn)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("mamba_ssm.ops")
    del sys.modules["mamba_ssm"]


def test_a_real_package_is_replaced_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("mamba_ssm")
    with standing_in("mamba_ssm"):
        assert importlib.import_module("mamba_ssm") is package
        with standing_in("mamba_ssm", replace=True):
            assert isinstance(importlib.import_module("mamba_ssm"), StandIn)
        assert importlib.import_module("mamba_ssm") is package
    assert sys.modules.pop("mamba_ssm") is package


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "selective_scan" / "csrc").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    with standing_in():
        assert isinstance(importlib.import_module("selective_scan"), StandIn)


def test_a_compiled_module_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"selective_scan_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    monkeypatch.syspath_prepend(tmp_path)
    with standing_in():
        module = importlib.import_module("selective_scan_cuda")
        assert isinstance(module, StandIn)
        assert "does not load" in str(module.__doc__)
        assert callable(module.fwd)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"vmamba: stands in for selective_scan_cuda, which does not load \(.+\)\n", err)


def test_what_is_blocked_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)  # type: ignore[arg-type]
    with standing_in():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("causal_conv1d")
        with standing_in(replace=True):
            importlib.import_module("causal_conv1d")
        assert sys.modules["causal_conv1d"] is None


def test_blocks_in_threads() -> None:
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with standing_in():
                    assert importlib.util.find_spec("causal_conv1d") is not None
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_it_is_no_real_kernel() -> None:
    """What tells `vmamba.kernels.mamba_ssm` a stand-in from the real module, before and after it is loaded."""
    with standing_in():
        spec = importlib.util.find_spec("selective_scan_cuda")
        assert spec is not None
        assert spec.loader is not None
        assert getattr(spec.loader, "vmamba_stand_in", False)
        assert hasattr(importlib.import_module("selective_scan_cuda"), MARK)
    assert not hasattr(ModuleType("selective_scan_cuda"), MARK)
