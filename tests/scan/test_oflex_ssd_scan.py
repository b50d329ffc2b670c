"""``"oflex"``'s Mamba-2 scan: against the float64 products with every instruction set here, and as a torch operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import ANY

import pytest
import torch
import torch._dynamo.testing
from scan_cases import check
from torch import Tensor

from vmamba.errors import BackendError, InputError
from vmamba.kernels.interface import ScanCall
from vmamba.kernels.native import library as native
from vmamba.kernels.ssd import maps
from vmamba.kernels.ssd.maps import MapScan
from vmamba.scan import recorded_runs, schema, ssd_scan
from vmamba.scan.dispatch import BACKENDS

pytestmark = pytest.mark.skipif(native.library_path() is None, reason="the native kernels are not built")

ISAS = native.isas()[1] if native.library_path() else ()
#: Directions over a map: as it lies, its columns, and both backwards.
AXES, FLIPS = [0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]


@dataclass(frozen=True)
class Size:
    """``b`` maps of ``h`` by ``w`` places, ``m`` heads of ``p`` channels, ``n`` states."""

    b: int
    h: int
    w: int
    m: int
    p: int
    n: int


#: One of everything; places, channels and states below, at and above every count that the kernels work in; heads that
#: are narrower than a vector, as wide, wider, and that begin inside one; more channels than a task takes.
SIZES = (
    Size(1, 1, 1, 1, 1, 1),
    Size(2, 2, 2, 3, 8, 16),
    Size(1, 3, 5, 7, 1, 3),
    Size(2, 5, 7, 3, 5, 13),
    Size(1, 4, 6, 2, 24, 65),
    Size(1, 2, 3, 9, 16, 64),
    Size(3, 3, 3, 50, 3, 8),
    Size(1, 7, 3, 1, 130, 20),
)


def made(size: Size, k: int = 4, ends: bool = False, decay: float = 2.0) -> MapScan:
    """A scan of float32 tensors, some of which do not lie one place after the other."""
    draw = torch.Generator().manual_seed(0)
    lead, (m, n) = (size.b, size.h, size.w), (size.m, size.n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    dt = torch.rand(*lead, k, m, generator=draw)
    x_dbl = normal(*lead, k, m + 2 * n)
    return MapScan(
        normal(size.b, size.w, size.h, m, size.p).transpose(1, 2),
        dt,
        -dt * decay * torch.rand(k, m, generator=draw),
        x_dbl[..., m : m + n],
        x_dbl[..., m + n :],
        normal(size.b, n, m * size.p) if ends else None,
        None,
        AXES[: 2 * k],
        FLIPS[: 2 * k],
        ends,
        None,
    )


def exact(scan: MapScan) -> tuple[Tensor, Tensor]:
    return maps.forward(scan._replace(**{name: t.double() for name, t in scan._asdict().items() if is_float(t)}))


def is_float(t: object) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_it_is_the_scan(isa: str, size: Size, ends: bool) -> None:
    scan = made(size, 1 if ends else 4, ends)
    want = exact(scan)
    with native.forced_isa(isa), recorded_runs() as runs:
        got = schema.ssd_scan(*scan)
    assert runs == [("oflex", "ssd_scan", isa)]
    for name, ours, theirs in zip(("y", "last"), got, want, strict=True):
        assert ours.shape == theirs.shape
        if name == "y" or ends:
            check(ours, theirs, 1e-6, name)


@pytest.mark.parametrize("decay", [0.0, 30.0, 1e4, math.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_decays_of_every_strength(isa: str, decay: float) -> None:
    scan = made(SIZES[3], decay=1.0)
    log_decay = scan.log_decay * decay if decay < math.inf else torch.full_like(scan.log_decay, -math.inf)
    scan = scan._replace(log_decay=log_decay)
    # With no state left each place gives what it takes: y = (C · B) δ x of all directions.
    want = (
        exact(scan)[0]
        if decay < math.inf
        else ((scan.B * scan.C).sum(-1, keepdim=True) * scan.dt).sum(-2)[..., None] * scan.x
    )
    with native.forced_isa(isa):
        check(schema.ssd_scan(*scan)[0], want, 1e-6, "y")


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_infinite_stays_so(isa: str) -> None:
    scan = made(Size(1, 2, 2, 2, 3, 5))
    scan = scan._replace(x=torch.full_like(scan.x, math.inf), B=scan.B.abs() + 1, C=scan.C.abs() + 1, dt=scan.dt + 1)
    with native.forced_isa(isa):
        assert (schema.ssd_scan(*scan)[0] == math.inf).all()


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_reaches_what_is_read_after_it(isa: str) -> None:
    scan = made(Size(1, 3, 7, 2, 3, 5), 1)
    x = scan.x.clone()
    x[0, 1, 3, 1, 2] = math.nan
    B, C = (t.clone() for t in (scan.B, scan.C))
    B[0, 2, 6], C[0, 2, 6] = math.inf, math.inf  # the last place, which blocks of steps are filled up with
    with native.forced_isa(isa):
        y, _ = schema.ssd_scan(*scan._replace(x=x))
        clean, _ = schema.ssd_scan(*scan)
        spoilt, _ = schema.ssd_scan(*scan._replace(B=B, C=C))
    y, clean, spoilt = (t.view(21, 6) for t in (y, clean, spoilt))
    assert y[10:, 5].isnan().all()
    torch.testing.assert_close(y[:10], clean[:10], rtol=0, atol=0)
    torch.testing.assert_close(y[:, :5], clean[:, :5], rtol=0, atol=0)
    torch.testing.assert_close(spoilt[:20], clean[:20], rtol=0, atol=0)


def test_results_do_not_depend_on_threads() -> None:
    scan, threads, found = made(SIZES[6]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(schema.ssd_scan(*scan)[0])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_places_tell_the_order_too() -> None:
    scan = made(SIZES[3])
    places = torch.arange(35).view(5, 7)
    read = [places.flatten(), places.T.flatten(), places.flatten().flip(0), places.T.flatten().flip(0)]
    got = schema.ssd_scan(*scan._replace(places=torch.stack(read).int()))[0]
    torch.testing.assert_close(got, schema.ssd_scan(*scan)[0], rtol=0, atol=0)


def leaves(scan: MapScan) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().requires_grad_() for t in scan.differentiable]


@pytest.mark.parametrize("ends", [False, True])
def test_gradients_are_the_products(ends: bool) -> None:
    scan, found = made(SIZES[3], 1 if ends else 4, ends), []
    for run in (schema.ssd_scan, BACKENDS["torch"].operators.ssd_scan):
        inputs = leaves(scan)
        y, last = run(*inputs, *scan[6:])
        total = y.square().sum() + last.square().sum()
        found.append(torch.autograd.grad(total, [t for t in inputs if t is not None]))
    for ours, theirs in zip(*found, strict=True):
        check(ours, theirs, 1e-5, "gradient")


@pytest.mark.parametrize("ends", [False, True])
def test_opcheck(ends: bool) -> None:
    scan = made(Size(2, 3, 4, 2, 3, 5), 1 if ends else 4, ends)
    torch.library.opcheck(torch.ops.vmamba.ssd_scan, (*leaves(scan), *scan[6:]))


def test_who_runs() -> None:
    x, dt, A = torch.randn(1, 9, 2, 3), torch.rand(1, 9, 2), -torch.rand(2)
    B, C = torch.randn(2, 1, 9, 1, 4)

    def ran(*tensors: Tensor, **options: str) -> Sequence[object]:
        with recorded_runs() as runs:
            ssd_scan(*tensors, **options)
        return runs

    plain, double = (x, dt, A, B, C), [t.double() for t in (x, dt, A, B, C)]
    assert ran(*plain) == ran(*plain, backend="oflex") == [("oflex", "ssd_scan", ANY)]
    assert ran(*plain, backend="torch") == ran(*double) == [("torch", "ssd_scan", "")]
    assert ran(*(t.bfloat16() for t in plain)) == [("oflex", "ssd_scan", ANY)]
    with pytest.raises(BackendError, match=r"no torch\.float64"):
        ssd_scan(*double, backend="oflex")
    call = ScanCall("ssd_scan", "cuda", torch.float32)
    assert "Mamba-2's scan on cuda tensors" in str(BACKENDS["oflex"].obstacle(call))
    with recorded_runs() as runs:
        torch.func.vmap(lambda t: ssd_scan(t[None], dt, A, B, C))(x)
    assert [one.backend for one in runs] == ["torch"]
    with recorded_runs() as runs:
        torch.compile(ssd_scan, fullgraph=True, backend="aot_eager")(*plain)
    assert runs == [("oflex", "ssd_scan", ANY)]


def test_an_operator_called_by_hand_looks_at_what_it_is_given() -> None:
    scan = made(SIZES[1])
    with pytest.raises(BackendError, match="float64"):
        torch.ops.vmamba.ssd_scan(*scan._replace(dt=scan.dt.double()))
    places = torch.arange(4, dtype=torch.int32).repeat(4, 1)
    for wrong, said in (
        (places + 1, r"must lie in 0 … 3, given 1 … 4"),
        (places.long(), "must be int32"),
        (places[:3], r"shape \(k, l\)"),
    ):
        with pytest.raises(InputError, match=said):
            torch.ops.vmamba.ssd_scan(*scan._replace(places=wrong))
