"""FEARec against direct circular correlation in plain loops (no Fourier transform anywhere), its
frequency windows by hand, its contrastive terms against a loop over pairs."""

import math

import pytest
import torch
from torch import Tensor

from sigma.errors import UserError
from sigma.models.fearec import FEARec, HybridAttention, frequency_windows
from sigma.ops import Rows
from tests.models.checks import assert_same, ends, every_state, five, packed, tiny
from tests.models.slow import attend, embedded, feed_forward, gelu, linear, norm


def build(**options: object) -> FEARec:
    """Shaken so much, as at the start all correlations are close to each other."""
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    return tiny(FEARec, std=0.7, **{"max_length": 8, "inner_size": 5} | off | options)


# --- the equations, one whole row of N positions at a time: the model is defined on those ---


def band(xs: list[Tensor], window: tuple[int, int]) -> list[Tensor]:
    """The part of a sequence that the window's cosines and sines span."""
    n = len(xs)
    out = []
    for t in range(n):
        y = torch.zeros_like(xs[0])
        for s in range(n):
            for f in range(*window):
                twice = 1 if f == 0 or 2 * f == n else 2  # a frequency stands for its negative, too
                y = y + twice * math.cos(2 * math.pi * f * (t - s) / n) / n * xs[s]
        out.append(y)
    return out


def correlation(q: list[Tensor], k: list[Tensor]) -> Tensor:
    n, d = len(q), len(q[0])
    return torch.stack([sum(q[(s + tau) % n] @ k[s] for s in range(n)) / d for tau in range(n)])


def hybrid(
    x: list[list[Tensor]], lengths: list[int], p: HybridAttention, window: tuple, training: bool
) -> list[list[Tensor]]:
    factor, ratio, heads = p.topk_factor, p.spatial_ratio, p.num_heads
    n = len(x[0])
    count = int(factor * math.log(n))
    qs, ks, vs = ([[linear(h, m) for h in row] for row in x] for m in (p.query, p.key, p.value))
    scores = [correlation(band(q, window), k) for q, k in zip(qs, ks, strict=True)]
    mean = sum(scores) / len(scores)
    out = []
    for row, length, q, k, v, r in zip(x, lengths, qs, ks, vs, scores, strict=True):
        ranked = (mean if training else r).tolist()
        delays = sorted(range(n), key=lambda tau: -ranked[tau])[:count]
        exps = [r[tau].exp() for tau in delays]
        weights = [e / sum(exps) for e in exps]
        mixed = [
            sum(w * v[(t + tau) % n] for w, tau in zip(weights, delays, strict=True))
            for t in range(n)
        ]
        if ratio:
            qw, kw, vw = (band(z, window) for z in (q, k, v))
            for t in range(n):
                seen = min(t + 1, length)
                spatial = attend(qw[t], kw[:seen], vw[:seen], heads)
                mixed[t] = (1 - ratio) * mixed[t] + ratio * spatial
        out.append([norm(h + linear(m, p.out), p.norm) for h, m in zip(row, mixed, strict=True)])
    return out


def by_equations(
    model: FEARec, items: Tensor, lengths: Tensor, windows: list[tuple[int, int]], training: bool
) -> Tensor:
    """Scores at every real position, row by row."""
    places = model.positions.table.weight
    x = [
        [norm(embedded(model.items, i) + places[t], model.norm) for t, i in enumerate(row)]
        for row in items
    ]
    ns = lengths.tolist()
    for layer, window in zip(model.layers, windows, strict=True):
        y = hybrid(x, ns, layer.attention, window, training)
        x = [[feed_forward(h, layer.feed_forward, gelu) for h in row] for row in y]
    states = torch.stack([h for row, n in zip(x, ns, strict=True) for h in row[:n]])
    return states @ model.items.weight[1:].T


WHOLE = [(0, 5), (0, 5)]  # N = 8: M = 5 frequencies


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, WHOLE),
        ({"topk_factor": 1.5}, WHOLE),  # 3 delays instead of 2
        ({"global_ratio": 0.6}, [(2, 5), (0, 3)]),
        ({"global_ratio": 0.5}, [(2, 5), (0, 2)]),
        ({"spatial_ratio": 0.3, "global_ratio": 0.6}, [(2, 5), (0, 3)]),
        ({"spatial_ratio": 1.0, "num_heads": 3}, WHOLE),
        ({"num_layers": 1}, [(0, 5)]),
        ({"max_length": 7, "global_ratio": 0.8, "spatial_ratio": 0.5}, [(0, 4), (0, 4)]),
        ({"max_length": 7, "global_ratio": 0.3}, [(2, 4), (0, 2)]),
    ],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict, windows: list, training: bool) -> None:
    model = build(**options).train(training)
    items, lengths = five(model.max_length)
    got = model.logits(every_state(model, *packed(items, lengths)))
    assert_same(model, got, by_equations(model, items, lengths, windows, training))


def test_windows_by_hand() -> None:
    assert frequency_windows(50, 2, 1.0) == [(0, 26), (0, 26)]
    # The authors' run: high frequencies first.
    assert frequency_windows(50, 2, 0.6) == [(10, 26), (0, 16)]
    assert frequency_windows(50, 3, 0.5) == [(13, 26), (7, 20), (1, 14)]
    assert frequency_windows(50, 2, 0.5) == [(13, 26), (0, 13)]
    assert frequency_windows(50, 2, 0.1) == [(13, 26), (0, 13)]
    assert frequency_windows(50, 1, 0.4) == [(0, 26)]


# --- contrastive and frequency terms ---


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a @ a).sqrt() / (b @ b).sqrt()


def nce_by_hand(a: Tensor, b: Tensor, temperature: float, similarity: str) -> Tensor:
    """2 M choices; each state's own partner against all others, whatever their targets."""
    score = cosine if similarity == "cos" else torch.dot
    states, m = [*a, *b], len(a)
    total = torch.zeros((), dtype=a.dtype)
    for i, state in enumerate(states):
        partner = i + m if i < m else i - m
        below = sum((score(state, states[j]) / temperature).exp() for j in range(2 * m) if j != i)
        total = total - ((score(state, states[partner]) / temperature).exp() / below).log()
    return total / (2 * m)


def gap_by_hand(a: Tensor, b: Tensor) -> Tensor:
    """Mean length of the difference's Fourier coefficients, from their cosines and sines."""
    m, d = a.shape
    total = torch.zeros((), dtype=a.dtype)
    for row in a - b:
        for f in range(d // 2 + 1):
            angle = 2 * math.pi * f * torch.arange(d, dtype=a.dtype) / d
            real, imaginary = row @ angle.cos(), row @ angle.sin()
            total = total + (real**2 + imaginary**2).sqrt() / math.sqrt(d)
    return total / (m * (d // 2 + 1))


def samples(seed: int = 1) -> tuple[Tensor, Rows, Tensor]:
    """Five rows and the places of their last items."""
    items, among = packed(*five(8, seed))
    return items, among, ends(among)


TWINS = samples(seed=3)[:2]  # sample by sample another sequence with the same target


@pytest.mark.parametrize(("frequency_weight", "similarity"), [(0.0, "cos"), (0.3, "dot")])
@pytest.mark.parametrize("contrast", ["un", "su", "us", "us_x"])
def test_extra_loss_by_hand(contrast: str, frequency_weight: float, similarity: str) -> None:
    weights = {"contrast_weight": 0.2, "semantic_weight": 0.5, "frequency_weight": frequency_weight}
    model = build(contrast=contrast, temperature=0.8, similarity=similarity, **weights)
    sample = model(*samples())
    # Given states unlike those the model finds, so that it shows which of the two a term took.
    states = 0.5 * sample
    twin = model(*samples(seed=3))
    pairs = {
        "un": [(0.2, states, sample)],
        "su": [(0.5, states, twin)],
        "us": [(0.2, states, sample), (0.5, states, twin)],
        "us_x": [(0.5, sample, twin)],
    }[contrast]
    want = sum(
        w * nce_by_hand(a, b, 0.8, similarity) + frequency_weight * gap_by_hand(a, b)
        for w, a, b in pairs
    )
    got = model.extra_loss(*samples(), states, TWINS)
    assert_same(model, got, want)


def test_twins_must_be_there() -> None:
    batch, model = samples(), build(contrast="us_x")
    with pytest.raises(UserError, match="next_item_twins"):
        model.extra_loss(*batch, model(*batch), None)
