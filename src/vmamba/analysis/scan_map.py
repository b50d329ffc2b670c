"""SS2D's implicit attention: how much each place of a map says in the output of one, exactly.

Unrolled, the recurrence of one channel in one direction is a matrix-vector product (arXiv 2401.10166, §4.3):

    y_q = Σ_{t ≤ q}  C_q · exp(A Σ_{t < s ≤ q} δ_s) δ_t B_t  u_t  +  D u_q

The factor before ``u_t`` is the map. As δ, B and C are fixed by the image, ``y`` is linear in ``u``, and one row, all
places' weights in the output at one place, is the gradient of ``y_q`` with respect to ``u``: one backward scan for all
channels and directions at once, and never an l×l matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.analysis.blocks import evaluating, one_image, ss2d_of, watched_scan
from vmamba.errors import ConfigError
from vmamba.layers.ss2d import SS2D
from vmamba.scan import selective_scan
from vmamba.scan.orders import Direction, directions_of, from_sequence, to_sequence


@dataclass(frozen=True)
class ScanMap:
    """One row of a layer's implicit attention.

    Attributes:
        query: row and column of the output's place, in the layer's map.
        weights: ``(k, d, h, w)``: for each direction and channel, each place's weight in the output at ``query``.
        skip: ``(d,)``: the weight of ``query``'s own input besides, ``D`` summed over the directions.
        inputs: ``(d, h, w)``, what the scan was given.
        output: ``(d,)``, what it gave at ``query``.
        directions: the scan orders.
    """

    query: tuple[int, int]
    weights: Tensor
    skip: Tensor
    inputs: Tensor
    output: Tensor
    directions: tuple[Direction, ...]

    def reproduced(self) -> Tensor:
        """The output at ``query`` from weights and inputs, ``(d,)``; `output` but for rounding."""
        return (self.weights * self.inputs).sum((0, 2, 3)) + self.skip * self.inputs[:, self.query[0], self.query[1]]

    def per_direction(self) -> Tensor:
        """Each place's influence by direction, ``(k, h, w)``: the weights' size, averaged over channels."""
        return self.weights.abs().mean(1)

    def merged(self, skip: bool = True) -> Tensor:
        """Each place's influence, ``(h, w)``: the size of the directions' sum, averaged over channels.

        Args:
            skip: whether the query's own input, which goes past the recurrence, is in it. It mostly outweighs the rest.
        """
        whole = self.weights.sum(0)
        if skip:
            whole[:, self.query[0], self.query[1]] += self.skip
        return whole.abs().mean(0)


@torch.no_grad()
def scan_map(model: nn.Module, image: Tensor, query: tuple[int, int], stage: int = -1, block: int = -1) -> ScanMap:
    """One row of a block's implicit attention for an image.

    Args:
        model: a network with one VMamba trunk; it is run in eval mode and left as it was.
        image: ``(in_chans, H, W)`` or ``(1, in_chans, H, W)``, preprocessed.
        query: row and column in pixels of ``image``; the place of the layer's map that they fall into is taken.
        stage: from 0; negative ones count from the last.
        block: within the stage, as ``stage``.

    Raises:
        ConfigError: no such stage, block or pixel; several images; or a layer whose second scan depends on its first
            (``cascade2d``), which is not linear in its input.
    """
    batch = one_image("scan map", image)
    layer = ss2d_of(model, stage, block)
    height, width = batch.shape[2:]
    if not (0 <= query[0] < height and 0 <= query[1] < width):
        raise ConfigError(f"query={query[0]},{query[1]}: no pixel of a {height}×{width} image (row, column)")
    seen: list[tuple[Tensor, Tensor]] = []
    with evaluating(model), watched_scan(layer, seen):
        model(batch)
    x, y = seen[0]
    h, w = x.shape[1:3]
    return scan_row(layer, x, (query[0] * h // height, query[1] * w // width), y)


def scan_row(layer: SS2D, x: Tensor, place: tuple[int, int], y: Tensor | None = None) -> ScanMap:
    """One row of a layer's implicit attention.

    Args:
        layer: whose.
        x: the scan's input ``(1, h, w, d)``.
        place: row and column of the output, in the map.
        y: the scan's output ``(1, h, w, d)``, if it is known.

    Raises:
        ConfigError: as `scan_map`.
    """
    directions = _directions(layer)
    _, h, w, d = x.shape
    with torch.no_grad():
        y = layer.scan(x) if y is None else y
    u, delta, A, B, C, bias = _sequences(layer, x, directions)
    chosen = torch.zeros(h, w, dtype=u.dtype, device=u.device)
    chosen[place] = 1
    wanted = torch.stack([to_sequence(chosen, direction) for direction in directions])  # (k, l)
    with torch.enable_grad():
        u.requires_grad_(True)
        out = selective_scan(u, delta, A, B, C, None, bias, True)
        (row,) = torch.autograd.grad(out, u, wanted.repeat_interleave(d, 0)[None].to(out.dtype))
    rows = row.unflatten(1, (len(directions), d))[0]
    weights = torch.stack([from_sequence(rows[i], one, h, w) for i, one in enumerate(directions)])
    skip = layer.Ds.detach().view(len(directions), d).sum(0).to(weights.dtype)
    inputs = x[0].permute(2, 0, 1).to(weights.dtype)
    return ScanMap(place, weights, skip, inputs, y[0, place[0], place[1]].detach(), directions)


@torch.no_grad()
def attention_matrix(layer: SS2D, x: Tensor) -> Tensor:
    """The whole implicit attention of a layer, ``(k, d, l, l)``, for small maps: 4·d·l² numbers.

    Args:
        layer: whose.
        x: the scan's input ``(1, h, w, d)``.

    Returns:
        For each direction and channel, output places by input places, both in row-major order of the image; the skip
        ``D`` is not in it.

    Raises:
        ConfigError: as `scan_map`.
    """
    directions = _directions(layer)
    _, h, w, d = x.shape
    _, delta, A, B, C, bias = _sequences(layer, x, directions)
    k, length = len(directions), h * w
    step = F.softplus(delta + bias[:, None]).view(k, d, length)
    A, B, C = A.view(k, d, -1), B[0], C[0]  # (k, d, n), (k, n, l), (k, n, l)
    total = step.cumsum(-1)
    between = (total[..., :, None] - total[..., None, :]).unsqueeze(
        2
    )  # Σ of the steps after t up to q, (k, d, 1, q, t)
    decay = torch.exp(A[..., None, None] * between).tril()  # (k, d, n, q, t)
    inside = torch.einsum("knq,kdnqt,knt,kdt->kdqt", C, decay, B, step)
    places = torch.arange(length, device=x.device).view(h, w)
    matrices = torch.zeros_like(inside)
    for i, direction in enumerate(directions):
        order = to_sequence(places, direction)
        matrices[i][:, order[:, None], order[None, :]] = inside[i]
    return matrices


def _directions(layer: SS2D) -> tuple[Direction, ...]:
    mode = layer.forward_type.scan_mode
    if mode == "cascade2d":
        raise ConfigError(
            "this layer scans in cascade (v052dc): its second scan's steps depend on what the first gave, so there is "
            "no one attention map; look at a model with another forward type"
        )
    if layer.scan_orders is not None or layer.share_directions:
        raise ConfigError(
            "this layer has scan_orders of its own, or directions that share parameters; scan maps are made of layers "
            "with one of VMamba's scan modes"
        )
    return directions_of(mode)


def _sequences(
    layer: SS2D, x: Tensor, directions: tuple[Direction, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``u, delta (1, k·d, l), A (k·d, n), B, C (1, k, n, l)`` and the bias ``(k·d,)``, as `SS2D.scan` makes them."""
    full = torch.float64 if layer.A_logs.dtype == torch.float64 else torch.float32
    k, r, n, d = len(directions), layer.dt_rank, layer.d_state, layer.d_inner
    with torch.no_grad():
        maps = F.linear(x, layer.x_proj_weight.view(k * (r + 2 * n), d).to(x.dtype)).to(full)
        maps = maps.unflatten(-1, (k, r + 2 * n)).permute(0, 3, 4, 1, 2)  # (1, k, r + 2n, h, w)
        image = x.to(full).permute(0, 3, 1, 2)
        u = torch.stack([to_sequence(image, one) for one in directions], 1).flatten(1, 2)
        low_rank, B, C = torch.stack([to_sequence(maps[:, i], one) for i, one in enumerate(directions)], 1).split(
            [r, n, n], dim=2
        )
        A, bias = -torch.exp(layer.A_logs.to(full)), layer.dt_projs_bias.to(full)
        if layer.forward_type.family == "m0":  # what a head has is each of its channels'
            delta = low_rank.repeat_interleave(d // r, 2)
            A, bias = (t.repeat_interleave(d // r, 1) for t in (A, bias))
            A = A.flatten()[:, None].repeat(1, n)
        else:
            delta = torch.einsum("kdr,bkrl->bkdl", layer.dt_projs_weight.to(full), low_rank)
        return u, delta.flatten(1, 2).contiguous(), A, B.contiguous(), C.contiguous(), bias.flatten()
