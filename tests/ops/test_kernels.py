"""Every operation on packed rows, by every backend, is held to its reference in float64.

Values and all gradients; NaN stands wherever nothing may be read.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import reference, rows_of
from sigma.ops.inputs import Attend
from tests.ops import cases
from tests.ops.cases import Where, draws, everywhere, held_to_the_reference, rows_case, run


@everywhere
@cases.on_all_rows
@cases.sizes(("d", "n", "gated"), (5, 3, True), (16, 8, True), (21, 11, True), (5, 3, False))
def test_scan(where: Where, case: str, d: int, n: int, gated: bool) -> None:
    rows, size = rows_case(case)
    held_to_the_reference(cases.scan_inputs(size, d, n, gated), rows, where)


@everywhere
@cases.on_all_rows
@pytest.mark.parametrize("silu", [False, True])
@cases.sizes(("d", "k"), (7, 6), (16, 4), (21, 3), (32, 3), (19, 1))
def test_conv(where: Where, case: str, d: int, k: int, silu: bool) -> None:
    rows, size = rows_case(case)
    held_to_the_reference(cases.conv_inputs(size, d, k, silu), rows, where)


@everywhere
@cases.on_all_rows
@cases.sizes("units", 3, 16, 32, 21)
def test_gru(where: Where, case: str, units: int) -> None:
    rows, size = rows_case(case)
    held_to_the_reference(cases.gru_inputs(size, units), rows, where)


@everywhere
@cases.on_all_rows
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("which", ["all", "last", "some"])
@cases.sizes(("heads", "d"), (3, 5), (2, 8), (2, 32), (1, 21))
def test_attend(where: Where, case: str, heads: int, d: int, which: str, causal: bool) -> None:
    rows, size = rows_case(case)
    held_to_the_reference(cases.attend_inputs(rows, size, heads, d, which, causal), rows, where)


@everywhere
@cases.on_all_rows
@cases.sizes(("heads", "d", "timed"), (2, 4, True), (1, 7, False))
def test_pointwise(where: Where, case: str, heads: int, d: int, timed: bool) -> None:
    rows, size = rows_case(case)
    held_to_the_reference(cases.pointwise_inputs(rows, size, heads, d, timed), rows, where)


LONG = 37 if cases.INTERPRETED else 1000


@everywhere
def test_a_long_row(where: Where) -> None:
    """After a short one; the scan against its equations over all places at once, but for h."""
    rows, size = rows_of(torch.tensor([2, LONG])), LONG + 4
    held_to_the_reference(cases.gru_inputs(size, 20), rows, where, 2e-5)
    longer = rows_of(torch.tensor([2, max(LONG, 71)]))  # its blocks are of another size from 65 on
    x = cases.attend_inputs(longer, int(longer.offsets[-1]) + 2, 1, 8, "last")
    held_to_the_reference(x, longer, where, 2e-5)
    x = cases.scan_inputs(size, 18, 9)
    grad = draws(9)(size, 18).detach()
    grad[:2] = 0
    leaves = {k: v.detach().requires_grad_() for k, v in cases.leaves_of(x).items()}
    u, dt, A, B, C, D, z, bias = leaves.values()
    long = slice(2, -2)
    delta = F.softplus(dt[long] + bias)
    decay, driven = torch.exp(delta[..., None] * A), (delta * u[long])[..., None] * B[long, None]
    h, states = torch.zeros_like(A), []
    for e, v in zip(decay.unbind(), driven.unbind(), strict=True):
        h = torch.addcmul(v, e, h)
        states.append(h)
    y = torch.einsum("tdn,tn->td", torch.stack(states), C[long]) + D * u[long]
    y = F.pad(y * F.silu(z[long]), (0, 0, 2, 2))
    results = run(x, rows, where, grad)
    results["result"][:2] = 0
    limit = 0.0 if where.kind == torch.float64 else 3e-5
    cases.check(results, cases.with_gradients(y, leaves, grad), limit)


@everywhere
def test_a_long_conv(where: Where) -> None:
    """Against PyTorch's."""
    rows, d, k = rows_of(torch.tensor([LONG])), 33, 4
    x, grad = cases.conv_inputs(LONG, d, k), draws(9)(LONG, d).detach()
    leaves = cases.leaves_of(x)
    padded = F.pad(x.x.T[None], (k - 1, 0))
    y = F.silu(F.conv1d(padded, x.weight[:, None], x.bias, groups=d)[0].T)
    cases.check(run(x, rows, where, grad), cases.with_gradients(y, leaves, grad), 3e-5)


@everywhere
@pytest.mark.parametrize("shift", [-20.0, -15.0, 19.9, 60.0])
@cases.sizes("skip", False, True)
def test_scan_with_tiny_and_large_steps(where: Where, shift: float, skip: bool) -> None:
    """1 + e^-20 is 1 in float32, but Δ is not 0; without the skip only what Δ carries is left."""
    rows, size = rows_case("mixed")
    x = cases.scan_inputs(size, 4, 8)
    dt, dt_bias = x.dt.detach() * (60 if shift == 60 else 1e-2), x.dt_bias.detach() * 0 + shift
    changed = {"dt": dt, "dt_bias": dt_bias}
    if shift > 0:  # else nothing is left of a state
        changed["A"] = x.A.detach() / 100
    if not skip:
        changed["D"] = torch.zeros(4).double()
    x = x._replace(**{k: v.requires_grad_() for k, v in changed.items()})
    grad = draws(9)(size, 4).detach()
    results, want = run(x, rows, where, grad), cases.exact(x, rows, grad)
    for name, value in want.items():
        error = (results[name].cpu().double() - value).abs().max() / value.abs().max()
        assert error < (1e-9 if where.kind == torch.float64 else 2e-5), name


@everywhere
def test_nan_is_not_hidden_and_stays_in_its_row(where: Where) -> None:
    rows = rows_of(torch.tensor([4, 6]))
    for name in ("u", "dt", "B"):
        x = cases.scan_inputs(12, 3, 8)
        with torch.no_grad():
            getattr(x, name)[6, 1] = float("nan")
        y = run(x, rows, where)["result"]
        assert y[6:10, 1].isnan().all()
        assert not y[:6].isnan().any()  # nor earlier in the row


@everywhere
def test_queries_beyond_a_rows_end_see_the_whole_row(where: Where) -> None:
    """As those of padding columns do, in a model that reads padding."""
    lengths, columns = [3, 20, 1], 20
    rows, draw = rows_of(torch.tensor(lengths)), draws(4)
    places = (rows.offsets[:-1, None] + torch.arange(columns)).flatten()
    q, k, v = draw(3 * columns, 2, 8), draw(26, 2, 8), draw(26, 2, 8)
    x = Attend(q, k, v, torch.arange(4) * columns, places, torch.zeros(1).long(), True, 0.0)
    want = []
    for row, length in enumerate(lengths):
        first = int(rows.offsets[row])
        for column in range(columns):
            seen = slice(first, first + min(column + 1, length))
            one = q[row * columns + column]
            weights = (torch.einsum("hd,thd->ht", one, k[seen]) / 8**0.5).softmax(-1)
            want.append(torch.einsum("ht,thd->hd", weights, v[seen]))
    grad = draws(9)(60, 2, 8).detach()
    expected = cases.with_gradients(torch.stack(want), cases.leaves_of(x), grad)
    cases.check(run(x, rows, where, grad), expected)


def dense(x: Attend, offsets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over all places at once; ``mask`` (M, H, T) multiplies the weights."""
    at = torch.arange(len(x.k))
    row = torch.searchsorted(offsets, at, right=True)
    visible = row[x.places][:, None] == row
    if x.causal:
        visible &= at <= x.places[:, None]
    scores = torch.einsum("mhd,thd->mht", x.q, x.k) / x.q.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return torch.einsum("mht,thd->mhd", weights if mask is None else weights * mask, x.v)


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_of_attention_is_dense_attention(causal: bool) -> None:
    rows = rows_of(torch.tensor([4, 0, 6, 1]))
    x = cases.attend_inputs(rows, 11, causal=causal)
    want = dense(x, rows.offsets)
    torch.testing.assert_close(reference.attend(x, rows.offsets), want)


def read_weights(x: Attend, lengths: list[int], where: Where) -> Tensor:
    """The weights (M, H, T), by values that are one key's alone; no row is longer than d."""
    rows, d = rows_of(torch.tensor(lengths)), x.q.shape[2]
    position = rows.positions(len(x.k))
    values = torch.eye(d, dtype=torch.float64)[position, None].expand_as(x.k).contiguous()
    shares = run(x._replace(v=values.requires_grad_()), rows, where)["result"].cpu().double()
    row = rows.row_of(x.places)
    column = torch.arange(len(x.k)) - rows.offsets[row][:, None]
    inside = rows.row_of(torch.arange(len(x.k))) == row[:, None]
    index = column.clamp(0, d - 1)[:, None].expand(-1, x.q.shape[1], -1)
    return shares.gather(2, index) * inside[:, None]


@everywhere
@pytest.mark.parametrize(("which", "causal"), [("all", True), ("some", False), ("last", True)])
def test_dropout(where: Where, which: str, causal: bool) -> None:
    """Its share, its scale, that the seed decides, and gradients of the very weights dropped."""
    # Of several blocks of keys, and of queries; interpreted, long ones where queries are few.
    longest, p = 37 if cases.INTERPRETED and which != "last" else 70, 0.3
    lengths = [longest, 0, 13, 1]
    rows = rows_of(torch.tensor(lengths))
    x = cases.attend_inputs(rows, longest + 14, 2, longest, which, causal, p)
    x = x._replace(places=x.places.clamp(max=longest + 13))
    real = slice(int(x.query_offsets[-1]))
    weights = read_weights(x._replace(dropout=0.0), lengths, where)
    result = read_weights(x, lengths, where)
    reach, mask = weights > 0, result > 0
    assert not (mask & ~reach).any()
    count = int(reach.sum())
    assert abs(1 - mask.sum() / reach.sum() - p) < 5 * (p * (1 - p) / count) ** 0.5
    # The two heads see the same keys, and agree as two coins do.
    alike = (mask[:, 0] == mask[:, 1])[reach[:, 0]].double().mean()
    assert abs(alike - (p**2 + (1 - p) ** 2)) < 5 * (0.25 / (count / 2)) ** 0.5
    torch.testing.assert_close(result, mask * weights / (1 - p), rtol=5e-5, atol=1e-7)
    assert torch.equal(result, read_weights(x, lengths, where))
    high = 0 if where.backend == "blocked" else 2**40  # PyTorch's generator has 32 bits of seed
    for seed in (x.seed + 1, x.seed + 1 - high):
        assert not torch.equal(result, read_weights(x._replace(seed=seed), lengths, where))
    grad = draws(9)(len(x.q), 2, longest).detach()
    grad[real.stop :] = 0
    y = dense(x, rows.offsets, mask.double() / (1 - p))
    y = torch.cat([y[real], torch.zeros_like(y[real.stop :])])
    limit = 3e-5 if where.backend == "cpu" else 0.0  # p is a multiple of 2^-16 there
    cases.check(run(x, rows, where, grad), cases.with_gradients(y, cases.leaves_of(x), grad), limit)


@cases.no_compiler
@pytest.mark.skipif(cases.INTERPRETED, reason="it is of the C library")
def test_dropout_draws() -> None:
    """Seeds, heads, queries and keys draw by themselves, each with probability near p."""
    p, size = 0.3, 200
    rows, where = rows_of(torch.tensor([size])), Where("cpu", torch.float32, "cpu")

    def stays(dropout: float, seed: int) -> Tensor:
        x = cases.attend_inputs(rows, size, 2, size, "all", False, dropout)
        weights = read_weights(x._replace(seed=torch.tensor([seed])), [size], where)
        return weights.transpose(0, 1) > 0

    stay = stays(p, 5)
    error = (p * (1 - p) / size) ** 0.5
    for axis in (1, 2):  # of each query, of each key
        shares = 1 - stay.float().mean(axis)
        assert (shares - p).abs().max() < 5 * error
        assert abs(float(shares.std()) - error) < 0.2 * error
    agreeing = p**2 + (1 - p) ** 2
    for a, b in (
        *((stay[0], stay[1]), (stay, stays(p, 6)), (stay[:, 1:], stay[:, :-1])),
        *((stay[:, :, 1:], stay[:, :, :-1]), (stay[:, 1:, 1:], stay[:, :-1, :-1])),
    ):
        share = float((a == b).float().mean())
        assert abs(share - agreeing) < 6 * (agreeing * (1 - agreeing) / a.numel()) ** 0.5
    assert not stays(1.0, 5).any()
    assert stays(0.0, 5).all()


def bits(where: Where, alone: bool) -> list[Tensor]:
    """Results and gradients of all operations."""
    lengths = [1, 0, 7, 3, 1, 16, 17, 2, 0, 5] * 20 + [70, 9]
    size = sum(lengths)
    rows = rows_of(torch.tensor([size] if alone else lengths))
    inputs = (
        cases.scan_inputs(size, 40, 16),
        cases.conv_inputs(size, 40),
        cases.gru_inputs(size, 20),
        cases.attend_inputs(rows, size, 5, 8, dropout=0.2),
        cases.pointwise_inputs(rows, size),
    )
    return [v for x in inputs for v in run(x, rows, where).values()]


@cases.by_kernels
@pytest.mark.skipif(cases.INTERPRETED, reason="what is interpreted has an order")
@pytest.mark.parametrize("alone", [False, True])
def test_repeated_runs_and_any_threads_give_the_same_bits(where: Where, alone: bool) -> None:
    """One row alone is shared out by channels and heads."""
    before, first = torch.get_num_threads(), bits(where, alone)
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, first, bits(where, alone)))
    finally:
        torch.set_num_threads(before)
