"""``vmamba::ssd_scan``: Mamba-2's scan by the compiled kernels, forward; backward is products of matrices."""

from __future__ import annotations

from torch import Tensor

from vmamba import _torch
from vmamba.errors import BackendError
from vmamba.kernels import native
from vmamba.kernels.native import library
from vmamba.kernels.ssd.maps import MapScan
from vmamba.kernels.ssd.scan import SsdScan
from vmamba.scan.schema.kernels import checked, checked_places, dense, of_cpu, workspace


def _kernel(scan: MapScan) -> tuple[Tensor, Tensor, str]:
    if scan.x.device.type != "cpu":
        raise BackendError(
            f'there is no compiled kernel of Mamba-2\'s scan for {scan.x.device.type} tensors; use backend="torch"'
        )
    # All in float32, as parameters are.
    checked(of_cpu(), (scan.x,), scan.differentiable)
    if scan.places is not None:
        places = checked_places(scan.places, scan.dt.shape[-2], scan.x.shape[1:-2], scan.x.device)
        scan = scan._replace(places=places)
    b, m, p = scan.x.shape[0], *scan.x.shape[-2:]
    y, last = dense(scan.x), scan.x.new_empty((b, scan.B.shape[-1], m * p) if scan.ends else 0)
    if not y.numel():
        return y, last, library.isa()
    return y, last, native.ssd_scan.forward(scan, y, last if scan.ends else None, workspace(scan.x))


ssd_scan = SsdScan("oflex", "ssd_scan", _kernel, lambda scan: not _torch.is_plain(*scan.differentiable))
