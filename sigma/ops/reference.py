"""Every operation on packed rows, written from its equations: a loop over rows and positions.

All backends are held to these. Symbols: T places, B rows (``offsets``, (B + 1,) int64), row b the
places offsets[b] … offsets[b + 1] - 1, t a position in its row.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


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


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Selective state space model, step by step (Mamba, Gu & Dao 2023, algorithm 2).

    Δ_t = softplus(dt_t + dt_bias)
    h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t u_t B_t,    h_{-1} = 0 in each row
    y_t = (h_t C_t + D ⊙ u_t) ⊙ SiLU(z_t)

    Args:
        u: (T, d) input.
        dt: (T, d) raw step size.
        A: (d, N), negative.
        B: (T, N).
        C: (T, N).
        D: (d,) skip.
        z: (T, d) gate, or None for no gate.
        dt_bias: (d,).
        offsets: of the rows.

    Returns:
        y (T, d) in the type of ``u``.
    """

    def row(u: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> Tensor:
        delta = F.softplus(dt + dt_bias)
        h, ys = torch.zeros_like(A), []
        for t in range(len(u)):
            h = torch.exp(delta[t, :, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
            ys.append(h @ C[t] + D * u[t])
        y = torch.stack(ys)
        return (y if z is None else y * F.silu(z)).to(u.dtype)

    return each_row(row, offsets, u, u, dt, B, C, z)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, silu: bool = False
) -> Tensor:
    """Causal depthwise convolution within each row, then SiLU where asked for.

    y_t = bias + Σ_s weight[:, k - 1 - s] ⊙ x_{t-s},  s = 0 … k - 1, x before the row's start 0

    Args:
        x: (T, d).
        weight: (d, k); its last tap meets the current position.
        bias: (d,).
        offsets: of the rows.
        silu: SiLU of the result.
    """
    k = weight.shape[1]

    def row(x: Tensor) -> Tensor:
        ys = []
        for t in range(len(x)):
            y = bias
            for s in range(min(k, t + 1)):
                y = y + weight[:, k - 1 - s] * x[t - s]
            ys.append(y)
        y = torch.stack(ys)
        return F.silu(y) if silu else y

    return each_row(row, offsets, x, x)


def gru(gates: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """Gated recurrent unit of each row, with PyTorch's order and place of the reset gate.

    r_t = σ(a_r + U_r h_{t-1} + b_r),  z_t = σ(a_z + U_z h_{t-1} + b_z)
    n_t = tanh(a_n + r_t ⊙ (U_n h_{t-1} + b_n)),  h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1},  h_{-1} = 0

    Args:
        gates: (T, 3 G) the inputs' part a = W x + b, of r, z and n side by side.
        weight: (3 G, G) U.
        bias: (3 G,) b.
        offsets: of the rows.

    Returns:
        h (T, G).
    """

    def row(gates: Tensor) -> Tensor:
        h, hs = torch.zeros_like(weight[0]), []
        for a in gates:
            (ar, az, an), (ur, uz, un) = a.chunk(3), (weight @ h + bias).chunk(3)
            z = torch.sigmoid(az + uz)
            h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h
            hs.append(h)
        return torch.stack(hs)

    return each_row(row, offsets, gates[:, : weight.shape[1]], gates)


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, places: Tensor | None = None,
    causal: bool = True,
) -> Tensor:  # fmt: skip
    """softmax(Q K^T / sqrt(d)) V within each row, heads apart.

    Args:
        q: (M, H, d), of the queries at ``places``.
        k: (T, H, d).
        v: (T, H, d).
        offsets: of the rows.
        places: (M,) ascending; None is every place.
        causal: a query sees its own position and those before it, otherwise its whole row.

    Returns:
        (M, H, d).
    """
    asked = range(len(q)) if places is None else places.tolist()
    ends, out = offsets.tolist(), []
    for m, place in enumerate(asked):
        row = next((b for b in range(len(ends) - 1) if ends[b] <= place < ends[b + 1]), None)
        if row is None:
            out.append(torch.zeros_like(q[m]))
            continue
        seen = slice(ends[row], place + 1 if causal else ends[row + 1])
        scores = torch.einsum("hd,thd->ht", q[m], k[seen]) / q.shape[-1] ** 0.5
        out.append(torch.einsum("ht,thd->hd", scores.softmax(-1), v[seen]))
    return torch.stack(out) if out else torch.zeros_like(q)


def flip(x: Tensor, offsets: Tensor, keep: int) -> Tensor:
    """The first n - keep of each row's n states reversed, the last ``keep`` in their place.

    A row of at most ``keep`` is left as it is.
    """

    def row(x: Tensor) -> Tensor:
        head = max(len(x) - keep, 0)
        return torch.cat([x[:head].flip(0), x[head:]])

    return each_row(row, offsets, x, x)
