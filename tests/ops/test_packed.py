"""Every operation on packed rows, by every backend of the CPU, is held to its reference.

The C library and Triton's kernels have tests of their own beside these.
"""

import math

import pytest
import torch
from torch import Tensor

from sigma.models.layers import GRU
from sigma.ops import (
    Rows,
    attend,
    causal_conv,
    flip,
    gru,
    packed,
    padded,
    padded_places,
    places_of,
    plain,
    reference,
    rows_of,
    selective_scan,
    spread,
    take,
    unfold,
)
from sigma.ops.native import native_library
from tests.ops.cases import ROWS, draws, rows_case, scan_values, weighted_gradients

BACKENDS = ["blocked", "cpu"]
each_case = pytest.mark.parametrize("case", ROWS)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that ``auto`` comes to."""
    if request.param == "blocked":
        monkeypatch.setattr("sigma.ops.dispatch.native_library", lambda: None)
    elif native_library() is None:
        pytest.skip("no C compiler here")
    return str(request.param)


def check(got: Tensor, want: Tensor, leaves: list[Tensor]) -> None:
    """Values and all gradients, in float64."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    ours, theirs = weighted_gradients(got, leaves), weighted_gradients(want, leaves)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, n=number: f"{n}: {m}")


@each_case
@pytest.mark.parametrize("gated", [True, False])
def test_scan(backend: str, case: str, gated: bool) -> None:
    rows, size = rows_case(case)
    values = scan_values(size, 5, 3)
    u, dt, A, B, C, D, z, bias = values
    gate = z if gated else None
    got = selective_scan(u, dt, A, B, C, D, gate, bias, rows)
    want = reference.selective_scan(u, dt, A, B, C, D, gate, bias, rows.offsets)
    check(got, want, [x for x in values if gated or x is not z])


def scalar_scan(values: list[Tensor], lengths: list[int]) -> list[list[float]]:
    """The equations of Mamba's algorithm 2, one number at a time."""
    u, dt, A, B, C, D, z, bias = (x.tolist() for x in values)
    y, t = [], 0
    for length in lengths:
        states = [[0.0] * len(A[0]) for _ in A]
        for _ in range(length):
            out = []
            for d in range(len(A)):
                delta = math.log1p(math.exp(dt[t][d] + bias[d]))
                total = D[d] * u[t][d]
                for n in range(len(A[d])):
                    decay = math.exp(delta * A[d][n])
                    states[d][n] = decay * states[d][n] + delta * B[t][n] * u[t][d]
                    total += C[t][n] * states[d][n]
                out.append(total * z[t][d] / (1 + math.exp(-z[t][d])))
            y.append(out)
            t += 1
    return y


def test_the_reference_scan_equals_scalar_loops() -> None:
    rows, size = rows_case("mixed")
    values = scan_values(size, 3, 4)
    want = torch.tensor(scalar_scan(values, ROWS["mixed"][0]), dtype=torch.float64)
    torch.testing.assert_close(reference.selective_scan(*values, rows.offsets), want)


def test_scan_gradients_against_finite_differences(backend: str) -> None:
    rows = rows_of(torch.tensor([3, 1]))
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, rows), scan_values(4, 3, 4))


def test_scan_of_bfloat16_keeps_a_float32_state(backend: str) -> None:
    rows = rows_of(torch.tensor([40, 25]))
    values = [x.detach() for x in scan_values(65, 4, 8, torch.float32)]
    half = [x if i in (2, 5, 7) else x.bfloat16() for i, x in enumerate(values)]
    y = selective_scan(*half, rows)
    want = reference.selective_scan(*(x.double() for x in half), rows.offsets)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), want, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("shift", [-15.0, 15.0, 40.0])
def test_scan_with_tiny_and_large_steps(backend: str, shift: float) -> None:
    rows, size = rows_case("mixed")
    values = scan_values(size, 4, 8)
    values[7] = (values[7].detach() + shift).requires_grad_()
    check(selective_scan(*values, rows), reference.selective_scan(*values, rows.offsets), values)


def test_nan_is_not_hidden_and_stays_in_its_row(backend: str) -> None:
    rows = rows_of(torch.tensor([4, 4]))
    values = [x.detach() for x in scan_values(8, 3, 8, torch.float32)]
    values[0][6, 1] = float("nan")
    y = selective_scan(*values, rows)
    assert y[6:, 1].isnan().all()
    assert not y[:6].isnan().any()


@each_case
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_conv(backend: str, case: str, silu: bool, width: int) -> None:
    rows, size = rows_case(case)
    draw = draws()
    x, weight, bias = draw(size, 6), draw(6, width), draw(6)
    want = reference.causal_conv(x, weight, bias, rows.offsets, silu)
    check(causal_conv(x, weight, bias, rows, silu), want, [x, weight, bias])


@each_case
def test_gru(backend: str, case: str) -> None:
    rows, size = rows_case(case)
    draw = draws()
    gates, weight, bias = draw(size, 15), draw(15, 5), draw(15)
    want = reference.gru(gates, weight, bias, rows.offsets)
    check(gru(gates, weight, bias, rows), want, [gates, weight, bias])


@pytest.mark.parametrize("bias", [True, False])
def test_stacked_grus_are_torchs_on_each_row(backend: str, bias: bool) -> None:
    rows, size = rows_case("mixed")
    torch.manual_seed(0)
    peer = torch.nn.GRU(4, 5, num_layers=2, bias=bias)
    torch.manual_seed(0)
    module = GRU(4, 5, num_layers=2, bias=bias)
    assert {k: v.tolist() for k, v in peer.state_dict().items()} == {
        k: v.tolist() for k, v in module.state_dict().items()
    }
    x = draws()(size, 4)
    parts = [p for p in x.split(ROWS["mixed"][0]) if len(p)]
    want = torch.cat([peer.double()(part)[0] for part in parts])
    module.load_state_dict(peer.state_dict())
    module = module.double()
    got = module(x, rows)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    ours = weighted_gradients(got, [x, *module.parameters()])
    theirs = weighted_gradients(want, [x, *peer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@each_case
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("asked", ["all", "last", "some"])
def test_attend(backend: str, case: str, causal: bool, asked: str) -> None:
    rows, size = rows_case(case)
    draw = draws()
    k, v = draw(size, 2, 3), draw(size, 2, 3)
    places = {
        "all": None,
        "last": (rows.offsets[1:] - 1)[rows.offsets.diff() > 0],
        "some": torch.arange(0, size, 2),
    }[asked]
    q = draw(size if places is None else len(places), 2, 3)
    want = reference.attend(q, k, v, rows.offsets, places, causal)
    check(attend(q, k, v, rows, places, causal), want, [q, k, v])


def test_queries_beyond_a_rows_end_see_the_whole_row(backend: str) -> None:
    """As those of padding columns do, in a model that reads padding."""
    lengths, columns = torch.tensor([3, 7, 1]), 7
    rows = rows_of(lengths)
    draw = draws()
    q, k, v = draw(3 * columns, 2, 3), draw(11, 2, 3), draw(11, 2, 3)
    places = (rows.offsets[:-1, None] + torch.arange(columns)).flatten()
    grid = torch.arange(4) * columns
    want = []
    for row, length in enumerate(lengths.tolist()):
        first = int(rows.offsets[row])
        for column in range(columns):
            seen = slice(first, first + min(column + 1, length))
            one = q[row * columns + column]
            weights = (torch.einsum("hd,thd->ht", one, k[seen]) / 3**0.5).softmax(-1)
            want.append(torch.einsum("ht,thd->hd", weights, v[seen]))
    got = attend(q, k, v, rows, places, True, 0.0, grid)
    check(got, torch.stack(want), [q, k, v])


def test_attend_drops_weights_and_scales_those_it_keeps(backend: str) -> None:
    """Read out by values that are one key's alone; the gradient has the very same weights."""
    length, p = 48, 0.25
    rows = rows_of(torch.tensor([length, length]))
    draw = draws()
    q, k = (0 * draw(2 * length, 1, length) for _ in range(2))
    one = torch.eye(length, dtype=torch.float64).repeat(2, 1)[:, None].requires_grad_()
    torch.manual_seed(0)
    weights = attend(q, k, one, rows, causal=False, dropout=p)[:, 0] * length
    dropped = weights == 0
    assert dropped.double().mean().item() == pytest.approx(p, abs=0.03)
    torch.testing.assert_close(
        weights[~dropped], torch.full_like(weights[~dropped], 1 / (1 - p)), rtol=1e-4, atol=0
    )
    (grad,) = torch.autograd.grad(weights.sum(), one)
    want = torch.cat([weights[:length].sum(0), weights[length:].sum(0)])
    torch.testing.assert_close(grad[:, 0].sum(1) / length, want)
    torch.manual_seed(0)
    assert torch.equal(attend(q, k, one, rows, causal=False, dropout=p)[:, 0] * length, weights)
    assert not torch.equal(attend(q, k, one, rows, causal=False, dropout=p)[:, 0], weights)


@each_case
@pytest.mark.parametrize("keep", [0, 2, 20])
def test_flip(case: str, keep: int) -> None:
    rows, size = rows_case(case)
    x = draws()(size, 4)
    end = int(rows.offsets[-1])
    got = flip(x, rows, keep)
    check(got[:end], reference.flip(x, rows.offsets, keep)[:end], [x])
    assert torch.equal(got[end:], x[end:])


@each_case
def test_padded_and_packed_undo_each_other(case: str) -> None:
    rows, size = rows_case(case)
    x, width = draws()(size, 4), rows.longest + 2
    wide = padded(x, rows, width)
    lengths, ends = ROWS[case][0], rows.offsets.tolist()
    plainly = torch.stack(
        [
            torch.cat([x[first : first + n], x.new_zeros(width - n, 4)])
            for first, n in zip(ends, lengths, strict=False)
        ]
    )
    check(wide, plainly, [x])
    back = packed(wide, rows, size)
    check(back, torch.cat([x[: ends[-1]], 0 * x[ends[-1] :].detach()]), [x])
    with pytest.raises(ValueError, match="do not fit"):
        padded(x, rows, rows.longest - 1)


@each_case
def test_states_are_taken_where_they_are_wanted(case: str) -> None:
    rows, size = rows_case(case)
    x = draws()(size, 4)
    index = torch.arange(0, int(rows.offsets[-1]), 2)
    check(take(x, places_of(index, size)), x[index], [x])
    width = rows.longest + 1
    cells = padded_places(rows, index, width)
    check(take(padded(x, rows, width).flatten(0, 1), cells), x[index], [x])


def test_a_place_that_fills_up_passes_no_gradient() -> None:
    x = draws()(6, 2)
    taken = take(x, places_of(torch.tensor([1, 4, 5, 5, 5]), 6))
    (grad,) = torch.autograd.grad(taken[:2].sum(), x)
    assert grad[:, 0].tolist() == [0, 1, 0, 0, 1, 0]


@each_case
def test_unfold_puts_earlier_states_beside_each(case: str) -> None:
    rows, size = rows_case(case)
    x, width, ends = draws()(size, 3), 3, rows.offsets.tolist()
    out = []
    for t in range(size):
        row = next((b for b in range(len(ends) - 1) if ends[b] <= t < ends[b + 1]), None)
        for back in (2, 1, 0):
            real = row is not None and t - back >= ends[row]
            out.append(x[t - back] if real else x.new_zeros(3))
    check(unfold(x, rows, width), torch.stack(out).view(size, -1), [x])


def test_a_rows_value_is_spread_over_its_places() -> None:
    rows, _ = rows_case("mixed")
    x, places = draws()(6, 2, 3), torch.tensor([0, 2, 4, 5, 10, 12, 17])
    want = x[torch.tensor([0, 0, 2, 2, 2, 4, 5])]
    check(spread(x, rows, places), want, [x])


def test_rows_tell_row_and_position_of_each_place() -> None:
    rows = Rows(torch.tensor([0, 3, 3, 5]), 3)
    assert rows.row_of(torch.arange(7)).tolist() == [0, 0, 0, 2, 2, 3, 3]
    assert rows.positions(7).tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert rows_of(torch.tensor([3, 0, 2])).offsets.tolist() == [0, 3, 3, 5]
    assert rows_of(torch.tensor([3, 0, 2])).longest == 3


def test_blocks_hold_every_row_once_and_little_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 200, (3000,), generator=generator).sort().values.tolist()
    blocks = plain.block_rows(lengths, lambda n: 8 * n)
    assert [i for first, last in blocks for i in range(first, last)] == list(range(3000))
    cells = sum((last - first) * lengths[last - 1] for first, last in blocks)
    assert cells < 1.35 * sum(lengths)
    assert plain.block_rows([5], lambda n: 2**40) == [(0, 1)]
    assert plain.block_rows([5, 5], lambda n: 2**40) == [(0, 1), (1, 2)]


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigma.ops.dispatch.native_library", lambda: None)
    rows, size = rows_case("many")
    values = scan_values(size, 3, 4)
    whole = selective_scan(*values, rows)
    grads = weighted_gradients(whole, values)
    monkeypatch.setattr(plain, "BLOCK_BYTES", 1)
    torch.testing.assert_close(selective_scan(*values, rows), whole)
    for a, b in zip(weighted_gradients(selective_scan(*values, rows), values), grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_long_row(backend: str) -> None:
    """Ten thousand places, beside the row cut in two: the later part forgets nothing."""
    size = 10_000
    values = [x.detach() for x in scan_values(size, 4, 2)]
    long, halves = rows_of(torch.tensor([size])), rows_of(torch.tensor([size // 2] * 2))
    y, cut = selective_scan(*values, long), selective_scan(*values, halves)
    torch.testing.assert_close(y[: size // 2], cut[: size // 2])
    assert not torch.allclose(y[size // 2], cut[size // 2])
    draw = draws()
    gates, weight, bias = draw(size, 9).detach(), draw(9, 3).detach(), draw(9).detach()
    module = torch.nn.GRU(3, 3).double()
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.eye(9)[:, :3])
        module.weight_hh_l0.copy_(weight)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.copy_(bias)
    inputs = torch.cat([gates[:, :3], torch.zeros(size, 6)], 1).double()
    want = module(gates[:, :3])[0]
    torch.testing.assert_close(gru(inputs, weight, bias, long), want)
