"""The scans as torch operators, once for all devices: signature, shapes for tracers, gradients, memory.

``vmamba::selective_scan`` and ``vmamba::ss2d_scan`` return the output and the states that backward starts from; the
shape of those each device's kernels decide. ``vmamba::order_scan`` is the 2-d scan in other orders than its modes'.
``vmamba::selective_scan_states`` begins with a given state, returns the last one and has a gate: an operator of its
own, so that graphs of what most models need stay as they are. ``vmamba::ssd_scan`` is Mamba-2's, compiled forward.
Here is the only place that allocates for them, always like the inputs, and that looks at device, layout and dtype
before an address leaves Python.

The functions of these names are what the backend ``"oflex"`` runs.
"""

from vmamba.scan.schema.order_scan import has_places, order_scan
from vmamba.scan.schema.selective_scan import selective_scan
from vmamba.scan.schema.selective_scan_states import selective_scan_states
from vmamba.scan.schema.ss2d_scan import ss2d_scan
from vmamba.scan.schema.ssd_scan import ssd_scan

__all__ = ["has_places", "order_scan", "selective_scan", "selective_scan_states", "ss2d_scan", "ssd_scan"]
