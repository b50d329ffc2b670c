"""What tests of the gate, the initial and the last state share: inputs, outputs and gradients, beside the oracle's."""

import torch
from scan_cases import check, inputs

from vmamba.scan import selective_scan, selective_scan_states_reference

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z", "initial_state")


def values_of(b, k, d, n, length, *, z=True, initial=True, dtype=torch.float32, seed=0):
    """`inputs`, and z and the initial state or None."""
    draw = torch.Generator().manual_seed(seed + 1)
    values = inputs(b, k, d, n, length, dtype=dtype, seed=seed)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    values.append(torch.randn(b, k * d, length, generator=draw, dtype=torch.float64).to(dtype) if z else None)
    values.append(torch.randn(b, k * d, n, generator=draw, dtype=torch.float64).to(full) if initial else None)
    return values


def run(values, backend, softplus=True, **options):
    *plain, z, initial = values
    return selective_scan(
        *plain, softplus, z=z, initial_state=initial, return_last_state=True, backend=backend, **options
    )


def both(function, values, of_y, of_last):
    """Outputs, and the gradients of ``sum(of_y · y) + sum(of_last · last)``, None for what is None."""
    leaves = [None if v is None else v.detach().clone().requires_grad_() for v in values]
    y, last = function(leaves)
    given_ones = [leaf for leaf in leaves if leaf is not None]
    loss = (y.double() * of_y).sum() + (last.double() * of_last).sum()
    found = iter(torch.autograd.grad(loss, given_ones))
    return y.detach(), last.detach(), [None if v is None else next(found) for v in values]


def weights_of(values):
    draw = torch.Generator().manual_seed(9)
    u, A = values[0], values[2]
    shape = (u.shape[0], *A.shape)
    return (torch.randn(s, generator=draw, dtype=torch.float64) for s in (u.shape, shape))


def compare(backend, values, softplus=True, tolerances=(1e-5, 1e-4)):
    of_y, of_last = weights_of(values)
    y, last, gradients = both(lambda v: run(v, backend, softplus), values, of_y, of_last)
    exact = [None if v is None else v.double() for v in values]
    want = both(lambda v: selective_scan_states_reference(*v, softplus), exact, of_y, of_last)
    assert y.dtype == last.dtype == (torch.float64 if values[0].dtype == torch.float64 else torch.float32)
    check(y, want[0], tolerances[0], "y")
    check(last, want[1], tolerances[0], "last")
    for name, value, got, exactly in zip(NAMES, values, gradients, want[2], strict=True):
        if value is not None:
            assert got.dtype == value.dtype, name
            check(got, exactly, tolerances[1], f"d{name}")
