"""`vmamba bench`: only what is right is timed, turns and ratios are what they say, and the files hold it all."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vmamba.bench import model as bench_model
from vmamba.bench import scale as bench_scale
from vmamba.bench.report import races_figure
from vmamba.bench.scan import LOOP, BenchScanConfig, ScanCase, make_case, parse_shape, scan_race
from vmamba.bench.scan_calls import relative_error, run_loop
from vmamba.bench.setup import BenchModelConfig
from vmamba.bench.timing import Candidate, Race, Timing, first_timed, race, threads, with_ratios
from vmamba.cli.main import main
from vmamba.errors import ConfigError
from vmamba.kernels.interface import ScanCall
from vmamba.layers import SS2D
from vmamba.models import create_model
from vmamba.scan.dispatch import BACKENDS, Backend

CPU = torch.device("cpu")
TINY = {"selective_scan": "2,2,5,3,7", "ss2d_scan": "1,3,2,5,2,3", "ssd_scan": "2,7,4,3,2,5"}
#: Options of a model that takes no time.
MODEL = ["--model_options", "{dims: [8, 8], depths: [1, 1]}", "--size", "16", "--rounds", "1"]


def here(op: str) -> list[str]:
    return [name for name, row in BACKENDS.items() if row.obstacle(ScanCall(op, "cpu", torch.float32)) is None]


def read(path: Path) -> dict[str, object]:
    found = json.loads(path.read_text())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    return found["races"]


# ---- timing --------------------------------------------------------------------------------------------------------


class Track:
    """Candidates on a clock that moves only while they run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def candidate(self, name: str, *seconds: float, problem: str | Exception = "") -> Candidate:
        lasts = iter(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += next(lasts)

        def check() -> str:
            if isinstance(problem, Exception):
                raise problem
            return problem

        return Candidate(name, run, check)

    def race(self, *candidates: Candidate, rounds: int = 3, seconds: float = 100.0) -> dict[str, Timing]:
        timings = race(candidates, rounds=rounds, seconds=seconds, clock=lambda: self.now)
        return {timing.name: timing for timing in timings}


def test_candidates_take_turns_and_the_warm_up_does_not_count() -> None:
    track = Track()
    found = track.race(track.candidate("a", 9, 1, 3, 5), track.candidate("b", 9, 4, 2, 6))
    assert track.ran == ["a", "b"] * 4
    assert found["a"].times_ms == pytest.approx((1e3, 3e3, 5e3))
    assert (found["b"].best_ms, found["b"].median_ms) == pytest.approx((2e3, 4e3))


def test_quick_candidates_fill_the_caches_before_each_timed_run() -> None:
    track = Track()
    found = track.race(track.candidate("quick", 0.1, 9, 0.2, 9, 0.1), track.candidate("slow", 9, 9, 9), rounds=2)
    assert track.ran == ["quick", "slow"] + ["quick", "quick", "slow"] * 2
    assert found["quick"].times_ms == pytest.approx((200, 100))


def test_time_ends_a_race_but_one_turn_is_always_timed() -> None:
    track = Track()
    assert len(track.race(track.candidate("a", 50, 50, 50, 50), seconds=1)["a"].times_ms) == 1


@pytest.mark.parametrize(
    ("problem", "failure"), [("off by 3", "off by 3"), (ZeroDivisionError("oh"), "ZeroDivisionError: oh")]
)
def test_a_wrong_candidate_is_not_timed(problem: str | Exception, failure: str) -> None:
    track = Track()
    found = track.race(track.candidate("wrong", problem=problem), track.candidate("right", 1, 1, 1, 1))
    assert set(track.ran) == {"right"}
    assert found["wrong"].failure == failure
    assert found["wrong"].best_ms is found["wrong"].median_ms is None
    assert not Race("title", "right", tuple(found.values())).passed
    assert first_timed(list(found.values())) == "right"


def test_ratios_are_of_best_times_to_the_baseline() -> None:
    timings = [Timing("a", (4.0, 9.0)), Timing("b", (8.0, 2.0)), Timing("c", failure="wrong")]
    assert [timing.ratio for timing in with_ratios(timings, "a")] == [1.0, 0.5, None]
    assert [timing.ratio for timing in with_ratios(timings, "b")] == [2.0, 1.0, None]
    assert [timing.ratio for timing in with_ratios(timings, "c")] == [None, None, None]
    with pytest.raises(ConfigError, match="'d' is not among the candidates a, b, c"):
        with_ratios(timings, "d")


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None) as count:
        assert count == before
    with pytest.raises(ConfigError, match="≥ 1, not 0"), threads(0):
        pass


def test_the_picture_has_a_bar_for_each_that_was_timed_and_names_the_rest() -> None:
    timings = with_ratios([Timing("a", (1.0,)), Timing("slow", (50.0,)), Timing("bad", failure="wrong")], "a")
    figure = races_figure(
        [Race("one", "a", timings), Race("none", "bad", (Timing("bad", failure="wrong"),))],
        {"cpu": "a CPU", "threads": 1, "device": "cpu", "torch": "2"},
    )
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [1.0, 50.0]
    assert [text.get_text() for text in first.texts] == ["1 ms  (×1)", "50 ms  (×50)"]
    assert first.get_xscale() == "log"
    assert first.get_title(loc="left") == "one; failed: bad"
    assert not second.patches


# ---- scans ---------------------------------------------------------------------------------------------------------


def case_of(op: str, backward: bool = True, dtype: str = "float32") -> tuple[BenchScanConfig, ScanCase]:
    config = BenchScanConfig(op=op, backward=backward, dtype=dtype, rounds=1)  # type: ignore[arg-type]
    return config, make_case(config, CPU, TINY[op], parse_shape(op, TINY[op]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("op", TINY)
def test_every_backend_and_the_loop_are_right_and_timed(op: str, backward: bool, dtype: str) -> None:
    config, _ = case_of(op, backward, dtype)
    found = scan_race(config, CPU, TINY[op], parse_shape(op, TINY[op]), {})
    assert [timing.name for timing in found.timings] == [*here(op), LOOP]
    assert found.passed, [timing.failure for timing in found.timings]
    assert all(len(timing.times_ms) == 1 for timing in found.timings)
    assert found.baseline == here(op)[0]


@pytest.mark.parametrize("op", TINY)
def test_a_wrong_output_and_a_wrong_gradient_are_refused(op: str) -> None:
    _, case = case_of(op)
    off = case.torch_candidate("off", lambda inputs: run_loop(op, inputs) * 1.001)
    assert off.check is not None
    assert off.check().startswith("the error of y is 1.0e-03")
    # The output is right, the gradient is not: A's is cut off.
    cut = case.torch_candidate(
        "cut", lambda inputs: run_loop(op, {**inputs, "A": inputs["A"].detach() + 0 * inputs["A"]})
    )
    assert cut.check is not None
    assert cut.check().startswith("the error of dA is 1.0e+00")
    short = case.torch_candidate("short", lambda inputs: run_loop(op, inputs)[:1, :1])
    assert short.check is not None
    with pytest.raises(RuntimeError, match="shape"):  # autograd's; `race` reports it
        short.check()


def test_forward_alone_keeps_no_graph_and_checks_the_output_alone() -> None:
    _, case = case_of("selective_scan", backward=False)
    seen: list[Tensor] = []
    candidate = case.torch_candidate("loop", lambda inputs: seen.append(run_loop(case.op, inputs)) or seen[-1])
    assert candidate.check is not None
    assert candidate.check() == ""
    assert not seen[0].requires_grad
    assert list(case.expected) == ["y"]


def test_a_backend_that_another_stands_in_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_scan = BACKENDS["torch"].operators
    assert torch_scan is not None
    module = SimpleNamespace(
        machine_obstacle=lambda: None, call_obstacle=lambda call: None, selective_scan=torch_scan.selective_scan
    )
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake", "hands on", {"cpu": module}, module))  # type: ignore[index,dict-item]
    config, case = case_of("selective_scan")
    found = scan_race(config, CPU, case.shape, case.size, {})
    assert {timing.name: timing.failure for timing in found.timings}["fake"] == "what ran was ['torch']"


def test_peers_are_checked_timed_or_named_as_absent() -> None:
    config, case = case_of("selective_scan")
    peers = {
        "right": lambda case: case.torch_candidate("right", lambda inputs: run_loop(case.op, inputs)),
        "wrong": lambda case: case.torch_candidate("wrong", lambda inputs: -run_loop(case.op, inputs)),
        "missing": lambda case: "not installed",
    }
    found = {timing.name: timing for timing in scan_race(config, CPU, case.shape, case.size, peers).timings}
    assert found["right"].times_ms
    assert "the error of y" in found["wrong"].failure
    assert not found["wrong"].times_ms
    assert found["missing"].absent == "not installed"


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,0", "1,2,3,4,x", "1,2,3,4,5,6", ""])
def test_a_shape_that_is_none_says_how_one_looks(text: str) -> None:
    with pytest.raises(ConfigError, match="takes b,k,d,n,l, whole numbers ≥ 1 as in 1,4,96,1,3136, not"):
        parse_shape("selective_scan", text)


def test_errors_relative_to_zero() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    assert relative_error(torch.zeros(2), zero) == 0
    assert relative_error(torch.tensor([0.0, 1e-9]), zero) == float("inf")
    assert relative_error(torch.tensor([0.0, 1e-9]), zero, floor=1.0) == pytest.approx(1e-9)
    assert not relative_error(torch.tensor([0.0, float("nan")]), zero) <= 1


def test_scan_command_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "1,2,3,1,5", "--shape", TINY["selective_scan"], "--no-loop", "--threads", "1", "--rounds", "2"]
    assert main(["bench", "scan", *words, "--backward", "--baseline", "torch", "--output", str(tmp_path / "new")]) == 0
    assert "forward and backward" in capsys.readouterr().out
    races = read(tmp_path / "new/scan.json")
    assert [one["setting"]["shape"] for one in races] == [
        {"b": 1, "k": 2, "d": 3, "n": 1, "l": 5},
        {"b": 2, "k": 2, "d": 5, "n": 3, "l": 7},
    ]
    for one in races:
        timings = {timing["name"]: timing for timing in one["timings"]}
        assert list(timings) == here("selective_scan")
        assert timings["torch"]["ratio"] == 1
        for timing in timings.values():
            assert len(timing["times_ms"]) == 2
            assert timing["best_ms"] == min(timing["times_ms"])
            assert timing["ratio"] == pytest.approx(timing["best_ms"] / timings["torch"]["best_ms"])


def test_mistakes_are_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmamba.bench.scan.scan_race", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(bench_model, "model_race", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for words, said in {
        ("scan", "--shape", "1,2"): "--shape of selective_scan takes b,k,d,n,l",
        ("scan", "--rounds", "0"): "--rounds takes a number ≥ 1",
        ("scan", "--output", str(tmp_path / "file")): "file",
        ("model", "vmamba_tinny"): "did you mean",
        ("model", "vmamba_nano", "--peer", "resnet81"): "is not a model of timm's; did you mean",
        ("model", "vmamba_nano", "--batch", "0"): "--batch takes a number ≥ 1",
    }.items():
        assert main(["bench", *words]) == 2, words
        assert said in capsys.readouterr().err


# ---- models --------------------------------------------------------------------------------------------------------


def test_model_command_times_ours_and_peers(tmp_path: Path) -> None:
    words = ["vmamba_nano", "--peer", "test_resnet", *MODEL, "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "model", *words]) == 0
    (one,) = read(tmp_path / "model.json")
    ours, peer = one["timings"]
    assert (ours["name"], peer["name"], one["baseline"]) == ("vmamba_nano", "test_resnet", "vmamba_nano")
    assert 0 < ours["extra"]["scan %"] < 100
    assert set(peer["extra"]) == {"images/s"}
    assert peer["ratio"] == pytest.approx(peer["best_ms"] / ours["best_ms"])


def test_train_command_compares_backends(tmp_path: Path) -> None:
    words = ["vmamba_nano", *MODEL, "--batch", "2", "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "train", *words]) == 0
    (one,) = read(tmp_path / "train.json")
    timings = {timing["name"]: timing for timing in one["timings"]}
    assert list(timings) == [f"{name}, {part}" for name in here("ss2d_scan") for part in ("forward", "step")]
    for name in here("ss2d_scan"):
        step, forward = timings[f"{name}, step"], timings[f"{name}, forward"]
        assert step["extra"]["step / forward"] == pytest.approx(step["best_ms"] / forward["best_ms"])
        assert step["extra"]["peak MiB"] > 0


def test_a_model_whose_scan_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scan = SS2D.scan

    def off(self: SS2D, x: Tensor) -> Tensor:
        # The oracle runs in float64, so only what is measured is off. A multiple of x, which fresh layers come close
        # to, would vanish in the norm that follows.
        return scan(self, x) + (0 if x.dtype == torch.float64 else x.roll(1, -1))

    monkeypatch.setattr(SS2D, "scan", off)
    assert main(["bench", "model", "vmamba_nano", *MODEL, "--threads", "1", "--output", str(tmp_path)]) == 1
    (one,) = read(tmp_path / "model.json")
    assert one["timings"][0]["failure"].startswith("the error of logits")
    assert one["timings"][0]["times_ms"] == []
    words = ["vmamba_nano", *MODEL, "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "train", *words]) == 1
    (one,) = read(tmp_path / "train.json")
    assert all("the error of" in timing["failure"] for timing in one["timings"])


def test_the_share_of_the_scan_leaves_the_model_as_it_was() -> None:
    model = create_model("vmamba_nano", dims=[8, 8], depths=[1, 1]).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        assert 0 < bench_model.scan_share(model, x, lambda: None, rounds=1) < 1
        assert torch.equal(model(x), before)
    assert not any("scan" in vars(layer) for layer in model.modules() if isinstance(layer, SS2D))


# ---- engines and sizes ---------------------------------------------------------------------------------------------


def words_of(**options: list[str]) -> list[str]:
    return [word for name, values in options.items() for value in values for word in (f"--{name}", value)]


def test_every_combination_is_a_race(tmp_path: Path) -> None:
    words = words_of(dtype=["float32", "bfloat16"], size=["32", "16"], batch=["1", "2"])
    options = [*MODEL[:2], "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "model", "vmamba_nano", *words, *options]) == 0
    races = read(tmp_path / "model.json")
    assert [one["title"] for one in races] == [
        f"forward, {batch}×3×{size}×{size}, {dtype}"
        for batch in (1, 2)
        for size in (32, 16)
        for dtype in ("float32", "bfloat16")
    ]
    for one in races:
        (timing,) = one["timings"]
        assert timing["extra"]["images/s"] == pytest.approx(one["setting"]["batch"] / timing["median_ms"] * 1e3)


@pytest.mark.endless
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_engine_is_a_candidate(tmp_path: Path, dtype: str) -> None:
    compiled = ["aoti"] if dtype == "float32" else []  # takes the compiler half a minute
    words = words_of(engine=["eager", *compiled, "onnx", "openvino"], dtype=[dtype])
    one_block = ["--model_options", "{dims: [8], depths: [1]}", *MODEL[2:]]
    options = [*one_block, "--batch", "2", "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "model", "vmamba_nano", *words, *options]) == 0
    (one,) = read(tmp_path / "model.json")
    timings = {timing["name"].removeprefix("vmamba_nano, "): timing for timing in one["timings"]}
    for engine in ("eager", *compiled, "openvino"):
        assert timings[engine]["extra"]["images/s"] == pytest.approx(2 / timings[engine]["median_ms"] * 1e3)
    assert ("bfloat16" in timings["onnx"]["absent"]) == (dtype == "bfloat16")


def test_an_engine_that_fails_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench_model.runner

    def fails(engine: str, *rest: Any) -> Any:
        if engine == "compile":
            raise RuntimeError("no compiler")
        return real(engine, *rest)

    monkeypatch.setattr(bench_model, "runner", fails)
    config = BenchModelConfig(size=32, rounds=1, model_options={"dims": [8, 16], "depths": [1, 1]})
    with torch.no_grad():
        one = bench_model.model_race(config, ["vmamba_nano"], [], CPU, ["eager", "compile"])
    found = {timing.name: timing for timing in one.timings}
    assert found["vmamba_nano, compile"].failure == "RuntimeError: no compiler"
    assert found["vmamba_nano, eager"].times_ms
    assert not one.passed


def test_slope_is_the_exponent_against_pixels() -> None:
    assert bench_scale.slope([(64, 3.0), (128, 12.0), (256, 48.0)]) == pytest.approx(1)
    assert bench_scale.slope([(64, 3.0), (128, 48.0)]) == pytest.approx(2)


def test_scale_writes_points_slopes_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model_options", "{dims: [8, 16], depths: [1, 1]}", "--rounds", "1", "--threads", "1"]
    words = ["vmamba_nano", "--peer", "convnext_atto", "--size", "64", "--size", "32", "--output", str(tmp_path)]
    assert main(["bench", "scale", *words, *options]) == 0
    found = json.loads((tmp_path / "scale.json").read_text())["models"]
    assert set(found) == {"vmamba_nano", "convnext_atto"}
    assert [point["size"] for point in found["vmamba_nano"]["points"]] == [32, 64]
    assert found["convnext_atto"]["slope"]["flop"] == pytest.approx(1, abs=0.02)
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert "slope against pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model", "vmamba_nano", "--engine", "onyx"], "--engine 'onyx': want eager or compile"),
        (["model", "vmamba_nano", "--dtype", "int8"], "--dtype 'int8': want float32 or bfloat16"),
        (["model", "vmamba_nano", "--size", "big"], "--image_size takes a whole number ≥ 1, not 'big'"),
        (["scale", "--size", "224"], "takes two or more sizes of at least 32 pixels"),
    ],
)
def test_mistakes_in_engines_and_sizes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


# ---- the script with peers -----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("backward", [[], ["--backward"]])
def test_peers_script_times_those_that_are_installed(tmp_path: Path, backward: list[str]) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "scan_peers.py"
    words = ["--shape", TINY["selective_scan"], "--rounds", "1", "--threads", "1", "--output", str(tmp_path), *backward]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = read(tmp_path / "scan.json")
    timings = {timing["name"]: timing for timing in one["timings"]}
    peers = {
        "mambapy pscan": "mambapy",
        "JAX lax.scan": "jax",
        "JAX lax.scan of products": "jax",
        "JAX associative_scan": "jax",
    }
    assert set(timings) == {*here("selective_scan"), LOOP, *peers}
    for name, package in peers.items():
        if importlib.util.find_spec(package) is None:
            assert timings[name]["absent"] == f"{package} is not installed (pip install {package})"
        else:
            assert len(timings[name]["times_ms"]) == 1
