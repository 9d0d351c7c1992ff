"""Every operation on packed rows, written from its equations: a loop over rows and positions.

All backends are held to these. Equations stand in scan.py, conv.py, gru.py, attend.py and
pointwise.py; row b is the places offsets[b] … offsets[b + 1] - 1, t a position in its row.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops.inputs import Attend, Conv, Gru, Pointwise, Scan


def each_row(
    row: Callable[..., Tensor], offsets: Tensor, like: Tensor, *values: Tensor | None
) -> Tensor:
    """``row`` of each row's part of the values (T, …), end to end; zeros behind the last row."""
    ends = offsets.tolist()
    parts = [
        row(*(None if x is None else x[first:last] for x in values))
        for first, last in pairwise(ends)
        if last > first
    ]
    return torch.cat([*parts, torch.zeros_like(like[ends[-1] :])])


def selective_scan(x: Scan, offsets: Tensor) -> Tensor:
    """y (T, d) in the type of u."""

    def row(u: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> Tensor:
        delta = F.softplus(dt + x.dt_bias)
        h, ys = torch.zeros_like(x.A), []
        for t in range(len(u)):
            h = torch.exp(delta[t, :, None] * x.A) * h + (delta[t] * u[t])[:, None] * B[t]
            ys.append(h @ C[t] + x.D * u[t])
        y = torch.stack(ys)
        return (y if z is None else y * F.silu(z)).to(u.dtype)

    return each_row(row, offsets, x.u, x.u, x.dt, x.B, x.C, x.z)


def causal_conv(x: Conv, offsets: Tensor) -> Tensor:
    """y (T, d)."""
    k = x.weight.shape[1]

    def row(v: Tensor) -> Tensor:
        ys = []
        for t in range(len(v)):
            y = x.bias
            for s in range(min(k, t + 1)):
                y = y + x.weight[:, k - 1 - s] * v[t - s]
            ys.append(y)
        y = torch.stack(ys)
        return F.silu(y) if x.silu else y

    return each_row(row, offsets, x.x, x.x)


def gru(x: Gru, offsets: Tensor) -> Tensor:
    """h (T, G)."""

    def row(gates: Tensor) -> Tensor:
        h, hs = torch.zeros_like(x.weight[0]), []
        for a in gates:
            (ar, az, an), (ur, uz, un) = a.chunk(3), (x.weight @ h + x.bias).chunk(3)
            z = torch.sigmoid(az + uz)
            h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h
            hs.append(h)
        return torch.stack(hs)

    return each_row(row, offsets, x.gates[:, : x.weight.shape[1]], x.gates)


def attend(x: Attend, offsets: Tensor) -> Tensor:
    """(M, H, d), without dropout; the row of a query is that of its place."""
    ends, out = offsets.tolist(), []
    for q, place in zip(x.q, x.places.tolist(), strict=True):
        row = next((b for b in range(len(ends) - 1) if ends[b] <= place < ends[b + 1]), None)
        if row is None:
            out.append(torch.zeros_like(q))
            continue
        seen = slice(ends[row], place + 1 if x.causal else ends[row + 1])
        scores = torch.einsum("hd,thd->ht", q, x.k[seen]) / q.shape[-1] ** 0.5
        out.append(torch.einsum("ht,thd->hd", scores.softmax(-1), x.v[seen]))
    return torch.stack(out) if out else torch.zeros_like(x.q)


def pointwise_attend(x: Pointwise, offsets: Tensor) -> Tensor:
    """(T, H, d)."""

    def row(q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None) -> Tensor:
        ys = []
        for t in range(len(q)):
            bias = torch.stack([x.distance_bias[t - s] for s in range(t + 1)])
            if x.time_bias is not None:
                assert u is not None
                assert w is not None
                gaps = [max(abs(int(u[t]) - s), 1) for s in w[: t + 1].tolist()]
                g = [min(int(math.log(gap) / 0.301), len(x.time_bias) - 1) for gap in gaps]
                bias = bias + x.time_bias[g]
            weights = F.silu(torch.einsum("hd,shd->hs", q[t], k[: t + 1]) + bias)
            ys.append(x.scale * torch.einsum("hs,shd->hd", weights, v[: t + 1]))
        return torch.stack(ys)

    return each_row(row, offsets, x.q, x.q, x.k, x.v, x.query_times, x.key_times)


def flip(x: Tensor, offsets: Tensor, keep: int) -> Tensor:
    """The first n - keep of each row's n states reversed, the last ``keep`` in their place.

    A row of at most ``keep`` is left as it is.
    """

    def row(x: Tensor) -> Tensor:
        head = max(len(x) - keep, 0)
        return torch.cat([x[:head].flip(0), x[head:]])

    return each_row(row, offsets, x, x)
