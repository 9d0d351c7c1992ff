"""The C kernels are held to the reference on packed rows of every kind, and to themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigma.ops import native, reference

pytestmark = pytest.mark.skipif(native.native_library() is None, reason="no C compiler here")

MANY = [1, 0, 7, 3, 1, 16, 17, 2, 0, 5] * 5 + [33, 70, 0, 9]
ROWS = {
    "ones": [1, 1, 1],
    "empty": [0, 3, 0, 0, 2, 0],
    "equal": [6] * 9,
    "one": [23],
    "none": [0, 0],
    "many": MANY,
}
KINDS = [torch.float64, torch.float32]
TAIL = 5


@pytest.fixture(params=ROWS)
def offsets(request: pytest.FixtureRequest) -> Tensor:
    return offsets_of(ROWS[request.param])


@pytest.fixture(params=KINDS, ids=["double", "float"])
def kind(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def draws(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw


def with_tail(x: Tensor, size: int = TAIL) -> Tensor:
    """NaN behind the last row, where nothing may be read."""
    return torch.cat([x, x.new_full((size, *x.shape[1:]), float("nan"))])


def reference_grads(
    function: Callable[..., Tensor], inputs: list[Tensor], gout: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    if not out.requires_grad:  # no row has a place
        return out, *(torch.zeros_like(x) for x in inputs)
    grads = torch.autograd.grad(out, leaves, gout, allow_unused=True)
    return out.detach(), *(
        torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)
    )


def compare(results: tuple, wanted: tuple, kind: torch.dtype) -> None:
    """Each result is as wanted, by the largest of its numbers, and zero behind the last row."""
    assert len(results) == len(wanted)
    tolerance = 1e-10 if kind == torch.float64 else 1e-4
    for index, (result, value) in enumerate(zip(results, wanted, strict=True)):
        assert result.dtype == kind
        scale = 1 + (float(value.abs().max()) if value.numel() else 0.0)
        if len(result) == len(value) + TAIL:
            assert (result[len(value) :] == 0).all(), index
            result = result[: len(value)]
        assert result.shape == value.shape, index
        torch.testing.assert_close(
            result.double() / scale,
            value / scale,
            atol=tolerance,
            rtol=0,
            msg=lambda m, index=index: f"{index}: {m}",
        )


def same_always(function: Callable[[], tuple]) -> None:
    """The same bits with one thread and with two, and when called again."""
    before = torch.get_num_threads()
    first = function()
    try:
        for threads in (2, 1, 2):
            torch.set_num_threads(threads)
            for a, b in zip(first, function(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def scan_inputs(places: int, d: int, n: int, gate: bool, seed: int = 0) -> list[Tensor | None]:
    draw = draws(seed)
    x = [draw(places, d), draw(places, d), -draw(d, n).abs() * 4, draw(places, n)]
    return [*x, draw(places, n), draw(d), draw(places, d) if gate else None, draw(d)]


OF_PLACES = (0, 1, 3, 4, 6)  # of the scan's inputs


def run_scan(x: list[Tensor | None], gy: Tensor, offsets: Tensor, kind: torch.dtype) -> tuple:
    cast = [
        None if v is None else (with_tail(v) if i in OF_PLACES else v).to(kind)
        for i, v in enumerate(x)
    ]
    y = native.scan_forward(*cast, offsets)  # type: ignore[arg-type]
    return y, *native.scan_backward(with_tail(gy).to(kind), *cast, offsets)  # type: ignore[arg-type]


@pytest.mark.parametrize(("d", "n", "gate"), [(16, 8, True), (21, 11, True), (5, 3, False)])
def test_scan(offsets: Tensor, d: int, n: int, gate: bool) -> None:
    places = int(offsets[-1])
    x = scan_inputs(places, d, n, gate)
    gy = draws(1)(places, d)

    def plain(*some: Tensor) -> Tensor:
        values = iter(some)
        return reference.selective_scan(*(None if v is None else next(values) for v in x), offsets)

    wanted = reference_grads(plain, [v for v in x if v is not None], gy)
    for kind in KINDS:
        results = run_scan(x, gy, offsets, kind)
        compare(tuple(v for v in results if v is not None), wanted, kind)
        assert (results[7] is None) == (not gate)


def test_long_scan(kind: torch.dtype) -> None:
    """One row of 2,000 places against the equations over all of them at once, but for h."""
    places, d, n = 2000, 18, 9
    x, gy, offsets = scan_inputs(places, d, n, True), draws(1)(places, d), offsets_of([places])

    def plain(u, dt, A, B, C, D, z, dt_bias):  # type: ignore[no-untyped-def]
        delta = torch.nn.functional.softplus(dt + dt_bias)
        decay = torch.exp(delta[..., None] * A).unbind()
        driven = ((delta * u)[..., None] * B[:, None]).unbind()
        h, states = torch.zeros_like(A), []
        for e, v in zip(decay, driven, strict=True):
            h = torch.addcmul(v, e, h)
            states.append(h)
        y = torch.einsum("tdn,tn->td", torch.stack(states), C) + D * u
        return y * torch.nn.functional.silu(z)

    wanted = reference_grads(plain, x, gy)  # type: ignore[arg-type]
    compare(run_scan(x, gy, offsets, kind), wanted, kind)


def test_scan_far_from_zero(kind: torch.dtype) -> None:
    """Steps and decays far out: nothing overflows."""
    x, offsets = scan_inputs(40, 16, 8, True), offsets_of([40])
    for i in (1, 6):
        assert x[i] is not None
        x[i] = x[i] * 60  # type: ignore[operator]
    gy = draws(1)(40, 16)
    wanted = reference_grads(lambda *v: reference.selective_scan(*v, offsets), x, gy)  # type: ignore[arg-type]
    compare(run_scan(x, gy, offsets, kind), wanted, kind)


def run_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gy: Tensor,
    offsets: Tensor,
    silu: bool,
    kind: torch.dtype,
) -> tuple:
    x, gy, weight, bias = (
        with_tail(x).to(kind),
        with_tail(gy).to(kind),
        *(v.to(kind) for v in (weight, bias)),
    )
    wide = x.new_full((len(x), x.shape[1] * 2 + 3), float("nan"))
    wide[:, 3 : 3 + x.shape[1]] = x
    x = wide[:, 3 : 3 + x.shape[1]]
    y = native.conv_forward(x, weight, bias, offsets, silu)
    return y, *native.conv_backward(gy, x, weight, bias, offsets, silu)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("d", "k"), [(16, 4), (21, 3), (32, 3), (19, 1), (7, 6)])
def test_conv(offsets: Tensor, kind: torch.dtype, d: int, k: int, silu: bool) -> None:
    places, draw = int(offsets[-1]), draws()
    x, weight, bias, gy = draw(places, d), draw(d, k), draw(d), draw(places, d)
    wanted = reference_grads(
        lambda *v: reference.causal_conv(*v, offsets, silu), [x, weight, bias], gy
    )
    compare(run_conv(x, weight, bias, gy, offsets, silu, kind), wanted, kind)


def test_long_conv(kind: torch.dtype) -> None:
    draw, d, k = draws(), 33, 4
    x, weight, bias, gy = draw(2000, d), draw(d, k), draw(d), draw(2000, d)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x.T[None], (k - 1, 0))
        y = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=d)
        return torch.nn.functional.silu(y[0].T)

    wanted = reference_grads(plain, [x, weight, bias], gy)
    compare(run_conv(x, weight, bias, gy, offsets_of([2000]), True, kind), wanted, kind)


def run_gru(
    gates: Tensor,
    weight: Tensor,
    bias: Tensor,
    gstates: Tensor,
    offsets: Tensor,
    kind: torch.dtype,
) -> tuple:
    gates, gstates = with_tail(gates).to(kind), with_tail(gstates).to(kind)
    weight, bias = weight.to(kind), bias.to(kind)
    states, saved = native.gru_forward(gates, weight, bias, offsets)
    ggates, ghidden = native.gru_backward(gstates, saved, states, weight, offsets)
    before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
    before[offsets[:-1]] = 0
    inner = torch.cat([ggates[:, : 2 * weight.shape[1]], ghidden], 1)
    return states, ggates, inner.T @ before, inner.sum(0)


@pytest.mark.parametrize("size", [16, 32, 21, 3])
def test_gru(offsets: Tensor, kind: torch.dtype, size: int) -> None:
    places, draw = int(offsets[-1]), draws()
    gates, weight = draw(places, 3 * size), draw(3 * size, size) / size**0.5
    bias, gstates = draw(3 * size), draw(places, size)
    wanted = reference_grads(lambda *v: reference.gru(*v, offsets), [gates, weight, bias], gstates)
    compare(run_gru(gates, weight, bias, gstates, offsets, kind), wanted, kind)


def test_long_gru(kind: torch.dtype) -> None:
    draw, size, places = draws(), 20, 2000
    gates, weight = draw(places, 3 * size), draw(3 * size, size) / size**0.5
    bias, gstates, offsets = draw(3 * size), draw(places, size), offsets_of([places])
    wanted = reference_grads(lambda *v: reference.gru(*v, offsets), [gates, weight, bias], gstates)
    compare(run_gru(gates, weight, bias, gstates, offsets, kind), wanted, kind)


def asked(offsets: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """Places of queries, and where each row's begin."""
    places = torch.arange(int(offsets[-1]))
    if which == "last":
        places = offsets[1:][offsets.diff() > 0] - 1
    elif which == "some":
        places = places[torch.rand(len(places), generator=torch.Generator().manual_seed(2)) < 0.4]
    return places, torch.searchsorted(places, offsets)


def run_attend(
    x: list[Tensor],
    gout: Tensor,
    rows: tuple,
    kind: torch.dtype,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple:
    offsets, query_offsets, places, causal = rows
    q, k, v, gout = (with_tail(value).to(kind) for value in (*x, gout))
    places = torch.cat([places, places.new_full((TAIL,), int(offsets[-1]))])
    rest = (offsets, query_offsets, places, causal, dropout, seed)
    out, lse = native.attend_forward(q, k, v, *rest)
    assert (lse[len(lse) - TAIL :] == 0).all()
    return out, *native.attend_backward(gout, q, k, v, out, lse, *rest)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("which", ["all", "last", "some"])
@pytest.mark.parametrize(("heads", "d"), [(2, 8), (2, 32), (1, 21), (3, 5)])
def test_attend(
    offsets: Tensor, kind: torch.dtype, heads: int, d: int, which: str, causal: bool
) -> None:
    draw = draws()
    places, query_offsets = asked(offsets, which)
    k, v = draw(int(offsets[-1]), heads, d), draw(int(offsets[-1]), heads, d)
    q, gout = draw(len(places), heads, d), draw(len(places), heads, d)
    wanted = dense(q, k, v, gout, offsets, places, causal)
    results = run_attend([q, k, v], gout, (offsets, query_offsets, places, causal), kind)
    compare(results, wanted, kind)
    if len(k) < 60:
        torch.testing.assert_close(
            reference.attend(q, k, v, offsets, places, causal), wanted[0], atol=1e-12, rtol=0
        )


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gout: Tensor,
    offsets: Tensor,
    places: Tensor,
    causal: bool,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attention over all places at once; ``mask`` (H, M, T) multiplies the weights."""
    if len(k) == 0:
        return torch.zeros_like(q), *(torch.zeros_like(x) for x in (q, k, v))
    at = torch.arange(len(k))
    row = torch.searchsorted(offsets, at, right=True)
    visible = row[places][:, None] == row
    if causal:
        visible &= at <= places[:, None]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("mhd,thd->hmt", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hmt,thd->mhd", weights if mask is None else weights * mask, v)

    return reference_grads(plain, [q, k, v], gout)


@pytest.mark.parametrize("which", ["all", "last"])
@pytest.mark.parametrize("d", [8, 32])
def test_attend_dropout(kind: torch.dtype, d: int, which: str) -> None:
    """The mask is read out by one-hot values; with it all is as in a dense computation."""
    offsets, heads, p, causal = offsets_of(MANY), 2, 0.25, True
    places, query_offsets = asked(offsets, which)
    draw, size, longest = draws(), int(offsets[-1]), max(MANY)
    k, v = draw(size, heads, d), draw(size, heads, d)
    q, gout = draw(len(places), heads, d), draw(len(places), heads, d)
    # With k = 0 the weights are 1 / keys; d positions of each row at a time.
    position = (
        torch.arange(size)
        - offsets[torch.searchsorted(offsets, torch.arange(size), right=True) - 1]
    )
    mask = torch.zeros(heads, len(places), size, dtype=torch.float64)
    seen = position[places] + 1.0
    for first in range(0, longest, d):
        ones = torch.zeros(size, heads, d, dtype=torch.float64)
        inside = (position >= first) & (position < first + d)
        ones[inside, :, position[inside] - first] = 1
        out, _ = native.attend_forward(
            *(x.to(kind) for x in (q, torch.zeros_like(k), ones)),
            offsets,
            query_offsets,
            places,
            causal,
            p,
            7,
        )
        shares = out.double() * seen[:, None, None]
        at = torch.searchsorted(offsets, places, right=True) - 1
        for j in range(d):
            column = offsets[at] + first + j
            real = (column < offsets[at + 1]).nonzero()[:, 0]
            mask[:, real, column[real]] = shares[real, :, j].T
    values = mask[
        :,
        (torch.arange(size) <= places[:, None])
        & (
            torch.searchsorted(offsets, places, right=True)[:, None]
            == torch.searchsorted(offsets, torch.arange(size), right=True)
        ),
    ]
    dropped = float((values < 0.5).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / values.numel()) ** 0.5
    torch.testing.assert_close(
        values[values > 0.5], torch.full_like(values[values > 0.5], 1 / (1 - p)), atol=1e-5, rtol=0
    )
    mask = (mask > 0.5).double() / (1 - p)
    wanted = dense(q, k, v, gout, offsets, places, causal, mask)
    rows = (offsets, query_offsets, places, causal)
    compare(run_attend([q, k, v], gout, rows, kind, p, 7), wanted, kind)


def attend_share(p: float, seed: int, size: int = 200) -> Tensor:
    """Which weights of one row stay, (H, size, size), by one-hot values."""
    offsets, places = offsets_of([size]), torch.arange(size)
    ones = torch.eye(size).view(size, 1, size).repeat(1, 2, 1)
    zeros = torch.zeros_like(ones)
    out, _ = native.attend_forward(zeros, zeros, ones, offsets, offsets, places, False, p, seed)
    return (out > 0).transpose(0, 1)


def test_dropout_draws() -> None:
    """Seeds, heads, queries and keys draw by themselves, each with probability near p."""
    p, size = 0.3, 200
    stay = attend_share(p, 5)
    assert torch.equal(stay, attend_share(p, 5))
    error = (p * (1 - p) / size) ** 0.5
    for axis in (1, 2):  # of each query, of each key
        shares = 1 - stay.float().mean(axis)
        assert (shares - p).abs().max() < 5 * error
        assert abs(float(shares.std()) - error) < 0.2 * error
    agreeing = p**2 + (1 - p) ** 2

    def apart(a: Tensor, b: Tensor) -> None:
        share = float((a == b).float().mean())
        assert abs(share - agreeing) < 6 * (agreeing * (1 - agreeing) / a.numel()) ** 0.5

    apart(stay[0], stay[1])
    apart(stay, attend_share(p, 6))
    apart(stay[:, 1:], stay[:, :-1])
    apart(stay[:, :, 1:], stay[:, :, :-1])
    apart(stay[:, 1:, 1:], stay[:, :-1, :-1])
    assert not attend_share(1.0, 5).any()
    assert attend_share(0.0, 5).all()


def test_same_with_any_threads() -> None:
    offsets, kind, d = offsets_of(MANY * 4), torch.float32, 40
    places, draw = int(offsets[-1]), draws()
    x, gy = scan_inputs(places, d, 16, True), draw(places, d)
    same_always(lambda: run_scan(x, gy, offsets, kind))
    weight, bias = draw(d, 4), draw(d)
    assert x[0] is not None
    u = x[0]
    same_always(lambda: run_conv(u, weight, bias, gy, offsets, True, kind))
    gates, inner = draw(places, 3 * d), draw(3 * d, d) / d**0.5
    same_always(lambda: run_gru(gates, inner, draws(3)(3 * d), gy, offsets, kind))
    q = draw(places, 5, 8)
    rows = (offsets, offsets, torch.arange(places), True)
    same_always(lambda: run_attend([q, q, q], gy.view_as(q), rows, kind, 0.2, 3))
    # One row alone is shared by channels and heads.
    alone = offsets_of([places])
    same_always(lambda: run_scan(x, gy, alone, kind))
    same_always(lambda: run_conv(u, weight, bias, gy, alone, True, kind))
    same_always(lambda: run_attend([q, q, q], gy.view_as(q), (alone, alone, *rows[2:]), kind))
