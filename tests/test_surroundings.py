"""What surrounds a call never changes its result in silence: backends × surroundings × what is called.

Each cell is the right numbers, or, where `REFUSED` says so, an error of ours. The right numbers are those of the plain
call in float64 on the torch backend.
"""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import vmamba
from vmamba.kernels.native import library
from vmamba.scan import cascade_scan, dispatch, order_scan, selective_scan, ss2d_scan, ssd_scan
from vmamba.scan.any_order import cross, windows

Function = Callable[[Tensor], Tensor]
B, H, W, D, N, R = 2, 5, 6, 8, 2, 3


class Subject(NamedTuple):
    """Something to call, its input, and what is right: the output, and the gradient of its weighted sum."""

    call: Function
    x: Tensor
    y: Tensor
    dx: Tensor
    exact: Function  # the same in float64, on the torch backend
    copied: Callable[[], Function]  # by deepcopy and by pickle, where there is an object


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def weighted(y: Tensor) -> Tensor:
    # Weights by place, so that no two outputs are worth the same.
    return (y.flatten() * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device)).sum()


def subject(call: Function, x: Tensor, exact: Function, copied: Callable[[], Function] | None = None) -> Subject:
    leaf = x.double().requires_grad_()
    with vmamba.backend("torch"):
        y = exact(leaf)
        (dx,) = torch.autograd.grad(weighted(y), leaf)
    return Subject(call, x, y.detach(), dx, exact, copied or (lambda: call))


def operator(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Subject:
    return subject(lambda t: function(t, *others), x, lambda t: function(t, *(o.double() for o in others)))


def scan_subject() -> Subject:
    k = 2
    delta, A = 0.3 * normal(B, k * D, 11) - 1, -torch.exp(normal(k * D, N))
    inputs = (delta, A, normal(B, k, N, 11), normal(B, k, N, 12)[..., :11], normal(k * D), normal(k * D) - 1)

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:
        b = u.shape[0]
        return selective_scan(u, delta[:b], A, B[:b], C[:b], *rest, delta_softplus=True)

    return operator(scan, normal(B, k * D, 11), *inputs)


def scan_2d_subject() -> Subject:
    others = (normal(4, D, R), normal(4, D) - 2, -torch.exp(normal(4 * D, N)), normal(4 * D))
    x_dbl = normal(B, H, W, 4, R + 2 * N)
    # A smaller batch takes as much of x_dbl as it has images.
    return operator(lambda x, p, *rest: ss2d_scan(x, p[: x.shape[0]], *rest), normal(B, H, W, D), x_dbl, *others)


def order_subject() -> Subject:
    orders = (*cross(3)[:3], windows(2, 3)[5])
    others = (normal(4, D, R), normal(4, D) - 2, -torch.exp(normal(4 * D, N)), normal(4 * D))
    x_dbl = normal(B, 2, 3, 5, 4, R + 2 * N)

    def scan(x: Tensor, p: Tensor, *rest: Tensor) -> Tensor:
        return order_scan(x, p[: x.shape[0]], *rest, orders)

    return operator(scan, normal(B, 2, 3, 5, D), x_dbl, *others)


def cascade_subject() -> Subject:
    others = (normal(4, R + 2 * N, D), normal(4, D, R), normal(4, D) - 2, -torch.exp(normal(4 * D, N)), normal(4 * D))
    return operator(cascade_scan, normal(B, H, W, D), *others)


def ssd_subject() -> Subject:
    heads, groups, length = 4, 2, 70
    inputs = (
        0.3 * normal(B, length, heads) - 1, -torch.exp(normal(heads)), normal(B, length, groups, N),
        normal(B, length, groups, N + 1)[..., :N], normal(heads, 3), normal(heads) - 1,
    )  # fmt: skip

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:
        b = x.shape[0]
        return ssd_scan(x, dt[:b], A, B[:b], C[:b], *rest, dt_softplus=True)

    return operator(scan, normal(B, length, heads, 3), *inputs)


def model(**options: object) -> vmamba.VSSM:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_nano", **{"dims": [8, 16], "depths": [1, 1], "num_classes": 5, **options}).eval()


def model_subject(**options: object) -> Subject:
    one, exact = model(**options), model(**options).double()
    return subject(one, normal(B, 3, 16, 24), exact, lambda: pickle.loads(pickle.dumps(copy.deepcopy(one))))


MAMBA2 = {"forward_type": "m0_noz", "ssm_init": "v2", "ssm_d_state": 4, "ssm_dt_rank": 2}


def optimized_subject() -> Subject:
    one = vmamba.optimize(model(), example=normal(1, 3, 16, 24), compile=False)
    if library.obstacle() is None and one.engine != "packed":  # whichever is faster here, the packed one is the risk
        one = next(
            fast
            for fast in (vmamba.optimize(model(), example=normal(1, 3, 16, 24), compile=False) for _ in range(20))
            if fast.engine == "packed"
        )
    return subject(one, normal(B, 3, 16, 24), model().double(), lambda: copy.deepcopy(one))


SUBJECTS = {
    "selective_scan": scan_subject,
    "ss2d_scan": scan_2d_subject,
    "order_scan": order_subject,
    "cascade": cascade_subject,
    "ssd_scan": ssd_subject,
    "model": model_subject,
    "mamba2 model": lambda: model_subject(**MAMBA2),
    "optimized": optimized_subject,
}


def near(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert got.isfinite().all()
    error = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-12))
    assert error <= tolerance, f"off by {error:.1e} of scale"


def gradient(call: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(weighted(call(leaf)), leaf)[0]


def in_thread(run: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


# ---- the surroundings: each calls the subject and compares -----------------------------------------------------------


def plain(s: Subject) -> None:
    near(s.call(s.x), s.y)


def plain_gradient(s: Subject) -> None:
    near(gradient(s.call, s.x), s.dx)


def no_grad(s: Subject) -> None:
    with torch.no_grad():
        near(s.call(s.x), s.y)


def inference_mode(s: Subject) -> None:
    with torch.inference_mode():
        near(s.call(s.x).clone(), s.y)
    near(s.call(s.x), s.y)  # nothing that was made inside stands in the way outside


def made_in_inference_mode(s: Subject) -> None:
    with torch.inference_mode():
        x = s.x.clone()
    with torch.no_grad():
        near(s.call(x), s.y)


def autocast(s: Subject) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = s.call(s.x)
    # The products of a layer are 16-bit there; the scan's own, and an optimized model, are not.
    whole = isinstance(s.call, torch.nn.Module) and not hasattr(s.call, "engine")
    near(y, s.y, 5e-2 if whole or s.y.shape == s.x.shape == (B, H, W, D) else 2e-5)


def default_dtype(dtype: torch.dtype) -> Callable[[Subject], None]:
    def surrounded(s: Subject) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            y, dx = s.call(s.x), None if hasattr(s.call, "engine") else gradient(s.call, s.x)
        finally:
            torch.set_default_dtype(before)
        near(y, s.y)
        if dx is not None:
            near(dx, s.dx)

    return surrounded


def default_device(s: Subject) -> None:
    x = s.x.clone()
    with torch.device("meta"):
        y = s.call(x)
        if not hasattr(s.call, "engine"):
            leaf = x.requires_grad_()
            (dx,) = torch.autograd.grad((s.call(leaf) * s.y.float()).sum(), leaf)
    near(y, s.y)
    if not hasattr(s.call, "engine"):
        exact = s.x.double().requires_grad_()
        with vmamba.backend("torch"):
            near(dx, torch.autograd.grad((s.exact(exact) * s.y).sum(), exact)[0])


def empty_batch(s: Subject) -> None:
    x = s.x[:0].clone()
    assert s.call(x).shape == (0, *s.y.shape[1:])
    if not hasattr(s.call, "engine"):
        assert gradient(s.call, x).shape == x.shape


def on_another_thread(s: Subject) -> None:
    asked = dispatch.ambient()

    def run() -> None:
        with vmamba.backend(asked):
            near(s.call(s.x), s.y)

    in_thread(run)


def backward_on_another_thread(s: Subject) -> None:
    leaf = s.x.clone().requires_grad_()
    loss = weighted(s.call(leaf))
    in_thread(loss.backward)
    assert leaf.grad is not None
    near(leaf.grad, s.dx)


def checkpointed(s: Subject) -> None:
    leaf = s.x.clone().requires_grad_()
    weighted(checkpoint(s.call, leaf, use_reentrant=False)).backward()
    assert leaf.grad is not None
    near(leaf.grad, s.dx)


def eight_threads(s: Subject) -> None:
    asked = dispatch.ambient()

    def run(i: int) -> Tensor:
        with vmamba.backend(asked), torch.no_grad():
            return s.call(s.x * (1 + i)) if i else s.call(s.x)

    want = [run(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for got, one in zip(pool.map(run, list(range(8)) * 4), want * 4, strict=True):
            assert torch.equal(got, one)


def copied(s: Subject) -> None:
    near(s.copied()(s.x), s.y)


def func_grad(s: Subject) -> None:
    near(torch.func.grad(lambda t: weighted(s.call(t)))(s.x), s.dx)


def vmap_of_grad(s: Subject) -> None:
    many = torch.stack([s.x, 0.5 * s.x])
    got = torch.func.vmap(torch.func.grad(lambda t: weighted(s.call(t))))(many)
    near(got[0], s.dx)
    near(got[1], gradient(s.exact, 0.5 * s.x.double()))


def vmap(s: Subject) -> None:
    near(torch.func.vmap(s.call)(torch.stack([s.x, s.x]))[1], s.y)


def tangent(s: Subject) -> Tensor:
    with vmamba.backend("torch"):
        return torch.func.jvp(s.exact, (s.x.double(),), (torch.cos(s.x.double()),))[1]


def jvp(s: Subject) -> None:
    near(torch.func.jvp(s.call, (s.x,), (torch.cos(s.x),))[1], tangent(s))


def dual_level(s: Subject) -> None:
    want = tangent(s)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(s.call(forward_ad.make_dual(s.x, torch.cos(s.x)))).tangent
        assert got is not None
        near(got, want)


def exact_hvp(s: Subject) -> Tensor:
    leaf = s.x.double().requires_grad_()
    with vmamba.backend("torch"):
        (first,) = torch.autograd.grad(weighted(torch.tanh(s.exact(leaf))), leaf, create_graph=True)
    return torch.autograd.grad((first * torch.cos(leaf.detach())).sum(), leaf)[0]


def hvp(s: Subject) -> None:
    grad = torch.func.grad(lambda t: weighted(torch.tanh(s.call(t))))
    near(torch.func.jvp(grad, (s.x,), (torch.cos(s.x),))[1], exact_hvp(s), 2e-4)


def double_backward(s: Subject) -> None:
    leaf = s.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(weighted(torch.tanh(s.call(leaf))), leaf, create_graph=True)
    near(torch.autograd.grad((first * torch.cos(leaf.detach())).sum(), leaf)[0], exact_hvp(s), 2e-4)


SURROUNDINGS = [
    plain, plain_gradient, no_grad, inference_mode, made_in_inference_mode, autocast, default_device, empty_batch,
    on_another_thread, backward_on_another_thread, checkpointed, eight_threads, copied, func_grad, vmap_of_grad, vmap,
    jvp, dual_level, hvp, double_backward,
]  # fmt: skip
TABLE: dict[str, Callable[[Subject], None]] = {one.__name__: one for one in SURROUNDINGS}
TABLE["default_float64"] = default_dtype(torch.float64)
TABLE["default_bfloat16"] = default_dtype(torch.bfloat16)

TRANSFORMS = {"func_grad", "vmap_of_grad", "vmap", "jvp", "dual_level", "hvp"}
GRADIENTS = {"plain_gradient", "backward_on_another_thread", "checkpointed", "double_backward"}


def refused(name: str, surrounding: str, backend: str | None) -> str:
    """What the error says where a cell is one, or an empty string."""
    if name == "optimized":
        if surrounding in TRANSFORMS:
            return "has no derivatives"
        return "built in" if backend == "torch" else ""
    if name in ("ssd_scan", "mamba2 model") and surrounding == "double_backward":  # backward is plain operations
        return ""
    if backend == "oflex" and surrounding in TRANSFORMS:
        return "forward-mode differentiation cannot go through its kernels"
    # Asked for after the choice was made, which is oflex where nothing else is said.
    return "no second derivatives" if surrounding == "double_backward" and backend != "torch" else ""


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: make() for name, make in SUBJECTS.items()}


@pytest.mark.skipif(library.obstacle() is not None, reason="the compiled kernels are not here")
@pytest.mark.parametrize("backend", [None, "oflex", "torch"])
@pytest.mark.parametrize("surrounding", TABLE)
@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_cell(name: str, surrounding: str, backend: str | None, subjects: dict[str, Subject]) -> None:
    if name == "optimized" and surrounding in GRADIENTS:
        return  # it has none, and its outputs say so
    why = refused(name, surrounding, backend)
    with vmamba.backend(backend):
        if not why:
            TABLE[surrounding](subjects[name])
            return
        with pytest.raises(vmamba.VMambaError, match=why):
            TABLE[surrounding](subjects[name])


def test_an_optimized_models_output_has_no_gradient(subjects: dict[str, Subject]) -> None:
    one = subjects["optimized"]
    assert not one.call(one.x.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("options", [{}, {"forward_type": "v052dc"}, MAMBA2], ids=str)
def test_a_model_on_the_meta_device_gives_shapes(options: dict[str, object]) -> None:
    y = model(**options).to("meta")(torch.empty(2, 3, 16, 24, device="meta"))
    assert y.shape == (2, 5)
    assert y.device.type == "meta"


def test_an_optimized_model_refuses_another_device(subjects: dict[str, Subject]) -> None:
    with pytest.raises(vmamba.InputError, match="given images on meta"):
        subjects["optimized"].call(torch.empty(1, 3, 16, 24, device="meta"))


def test_an_optimized_model_is_not_pickled(subjects: dict[str, Subject]) -> None:
    with pytest.raises(vmamba.ConfigError, match="save the model"):
        pickle.dumps(subjects["optimized"].call)


@pytest.mark.parametrize("backend", [None, "oflex", "torch"])
@pytest.mark.parametrize("thread", [False, True])
def test_a_recomputation_runs_the_backend_of_its_forward_pass(backend: str | None, thread: bool) -> None:
    one, kept = model(drop_path_rate=0.0), model(drop_path_rate=0.0, use_checkpoint=True)
    x = normal(B, 3, 16, 24)
    want = gradient(one.train(), x)
    leaf = x.clone().requires_grad_()
    with vmamba.recorded_runs() as runs:
        with vmamba.backend(backend):
            loss = weighted(kept.train()(leaf))
        with vmamba.backend("torch" if backend == "oflex" else "oflex"):
            in_thread(lambda: loss.backward(retain_graph=True)) if thread else loss.backward(retain_graph=True)
            loss.backward()
    assert len({run.backend for run in runs}) == 1
    assert leaf.grad is not None
    near(leaf.grad / 2, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_built_under_another_default_dtype_has_parameters_of_that_alone(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        one = model()
        y = one(torch.randn(1, 3, 16, 24))
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in one.parameters()} == {dtype} == {y.dtype}
    assert y.isfinite().all()


def test_a_fall_to_the_slow_backend_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_told", set())
    call = dispatch.ScanCall("ss2d_scan", "xpu", torch.float32)
    name = dispatch.choose_for(None, call)
    with pytest.warns(UserWarning, match=r"slow backend \"torch\" \(oflex: .*no kernel for xpu"):
        dispatch._tell_of_fall(name, call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch._tell_of_fall(name, call)
        dispatch._tell_of_fall("oflex", call._replace(device="cuda"))  # what is not slow is not told
