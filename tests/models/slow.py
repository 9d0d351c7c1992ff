"""The slow reference pieces in plain loops, used by the tests of several models.

Written from the equations: one row, position, head and tap at a time. Of a model's modules they
read parameters and sizes alone; the rest (heads, biases, what is causal) the test says, so that a
module that says it wrong is found out.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.mamba import Mamba
from sigma.models.mamba2 import Mamba2


def relu(x: Tensor) -> Tensor:
    return (x + x.abs()) / 2


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def embedded(table: nn.Embedding, item: Tensor) -> Tensor:
    """A row of the table; padding's passes no gradient."""
    return table.weight[item] if item else table.weight[0].detach()


def conv(xs: list[Tensor], layer: nn.Conv1d, depthwise: bool, ahead: int = 0) -> list[Tensor]:
    """Over the last k positions, or ``ahead`` positions later."""
    out = []
    k = layer.weight.shape[-1]
    for t in range(len(xs)):
        y = layer.bias
        for tap in range(k):
            if 0 <= (source := t + ahead - (k - 1 - tap)) < len(xs):
                w = layer.weight[:, :, tap]
                y = y + (w[:, 0] * xs[source] if depthwise else w @ xs[source])
        out.append(y)
    return out


def fourier_filter(xs: list[Tensor], filters: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Fourier sums term by term: forward, times a + b i of each frequency, back, real part."""
    n = len(xs)
    out = [torch.zeros_like(x) for x in xs]
    for k, (a, b) in enumerate(filters):
        re = sum(x * math.cos(2 * math.pi * k * t / n) for t, x in enumerate(xs))
        im = sum(-x * math.sin(2 * math.pi * k * t / n) for t, x in enumerate(xs))
        re, im = re * a - im * b, re * b + im * a
        for t in range(n):
            angle = 2 * math.pi * k * t / n
            out[t] = out[t] + (re * math.cos(angle) - im * math.sin(angle)) / n
    return out


def mamba(xs: list[Tensor], m: Mamba) -> list[Tensor]:
    split = [(m.in_proj.weight @ x).chunk(2) for x in xs]
    us = [F.silu(u) for u in conv([s[0] for s in split], m.conv1d, True)]
    state = us[0].new_zeros(len(us[0]), m.state_size)
    A, out = -m.A_log.exp(), []
    for u, (_, z) in zip(us, split, strict=True):
        raw, B, C = (m.x_proj.weight @ u).split([m.rank, m.state_size, m.state_size])
        step = torch.log1p((m.dt_proj.weight @ raw + m.dt_proj.bias).exp())
        state = (step[:, None] * A).exp() * state + (step * u)[:, None] * B
        out.append(m.out_proj.weight @ ((state @ C + m.D * u) * z * torch.sigmoid(z)))
    return out


def mamba2(xs: list[Tensor], m: Mamba2, order: list[int] | None = None) -> list[Tensor]:
    """One head at a time; the convolution is in the order of places, then the scan in ``order``."""
    (d, N, _), P = m.sizes, m.head_size
    split = [(m.in_proj.weight @ x).split([d, d + 2 * N, d // P]) for x in xs]
    convolved = [silu(v) for v in conv([s[1] for s in split], m.conv1d, True)]
    h = [torch.zeros(P, N, dtype=xs[0].dtype)] * (d // P)
    out = []
    for place in range(len(xs)) if order is None else order:
        (z, _, raw), (x, B, C) = split[place], convolved[place].split([d, N, N])
        y = []
        for head, part in enumerate(x.split(P)):
            step = torch.log1p((raw[head] + m.dt_bias[head]).exp())
            h[head] = (-step * m.A_log[head].exp()).exp() * h[head] + step * part.outer(B)
            y.append(h[head] @ C + m.D[head] * part)
        gated = torch.cat(y) * silu(z)
        scale = (gated.pow(2).mean() + 1e-5).sqrt()
        out.append(m.out_proj.weight @ (gated / scale * m.norm.weight))
    return out


def gru(xs: list[Tensor], g: nn.GRU, bias: bool, layer: int = 0) -> list[Tensor]:
    W, U = getattr(g, f"weight_ih_l{layer}"), getattr(g, f"weight_hh_l{layer}")
    f, out = U.new_zeros(U.shape[1]), []
    for x in xs:
        w, u = W @ x, U @ f
        if bias:
            w, u = w + getattr(g, f"bias_ih_l{layer}"), u + getattr(g, f"bias_hh_l{layer}")
        (wr, wz, wn), (ur, uz, un) = w.chunk(3), u.chunk(3)
        r, z = torch.sigmoid(wr + ur), torch.sigmoid(wz + uz)
        f = z * f + (1 - z) * torch.tanh(wn + r * un)
        out.append(f)
    return out


def attend(q: Tensor, ks: list[Tensor], vs: list[Tensor], heads: int) -> Tensor:
    """softmax(q K^T / sqrt(d)) V of one query, the heads side by side."""
    d = len(q) // heads
    out = []
    for first in range(0, len(q), d):
        part = slice(first, first + d)
        e = [((q[part] * k[part]).sum() / math.sqrt(d)).exp() for k in ks]
        out.append(sum(a * v[part] for a, v in zip(e, vs, strict=True)) / sum(e))
    return torch.cat(out)


def mixed(
    queries: list[Tensor], states: list[Tensor], p: nn.Module, heads: int, causal: bool
) -> list[Tensor]:
    """Attention of all queries; position t sees 0 … t if causal."""
    ks, vs = ([linear(x, f) for x in states] for f in (p.key, p.value))
    seen = [t + 1 if causal else len(states) for t in range(len(states))]
    return [
        attend(linear(x, p.query), ks[:n], vs[:n], heads)
        for x, n in zip(queries, seen, strict=True)
    ]


def attention(xs: list[Tensor], p: nn.Module, heads: int, causal: bool) -> list[Tensor]:
    """LayerNorm(X + attention(X) W_O)."""
    ys = mixed(xs, xs, p, heads, causal)
    return [norm(x + linear(y, p.out), p.norm) for x, y in zip(xs, ys, strict=True)]


def update(x: Tensor, p: nn.Module, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """f(X W1 + b1) W2 + b2."""
    return linear(activation(linear(x, p.widen)), p.narrow)


def feed_forward(x: Tensor, p: nn.Module, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """LayerNorm(X + f(X W1 + b1) W2 + b2)."""
    return norm(x + update(x, p, activation), p.norm)


def transformer_layer(
    xs: list[Tensor], p: nn.Module, activation: Callable, heads: int, causal: bool
) -> list[Tensor]:
    ys = attention(xs, p.attention, heads, causal)
    return [feed_forward(y, p.feed_forward, activation) for y in ys]
