"""Operations on rows that are read on, a few places at a time, beside those on whole rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigma import ops
from sigma.ops import Rows, Stream, scan
from tests.ops.cases import conv_inputs, draws, gru_inputs, scan_inputs

B, D = 3, 5
# How many places of each row come at a time.
PARTS = [[1] * 12, [12], [1, 4, 1, 6], [5, 3, 4], [11, 1], [2, 1, 9]]
Operation = Callable[[Tensor, Rows], Tensor]  # x (T, D) -> (T, …)


def scanned(gated: bool, shared: bool) -> Operation:
    """A scan whose inputs at a place are a map of x there; by Mamba-2, one decay a channel."""
    x = scan_inputs(D, D, 4, gated)
    A = x.A[:, :1].expand(-1, 4) if shared else x.A
    z = x.z if gated else None

    def operation(v: Tensor, rows: Rows) -> Tensor:
        gate = None if z is None else v @ z
        inputs = v @ x.u, v @ x.dt - 1, A, v @ x.B, v @ x.C, x.D, gate, x.dt_bias
        return ops.selective_scan(*inputs, rows)

    return operation


def convolved(k: int, silu: bool) -> Operation:
    x = conv_inputs(1, D, k)
    return lambda v, rows: ops.causal_conv(v, x.weight, x.bias, rows, silu)


def recurrent(bias: bool) -> Operation:
    x = gru_inputs(D)
    return lambda v, rows: ops.gru(v @ x.gates, x.weight, x.bias if bias else None, rows)


OPERATIONS: dict[str, Operation] = {
    "scan": scanned(True, False),
    "scan, no gate": scanned(False, False),
    "scan, one decay": scanned(True, True),
    "conv": convolved(4, True),
    "conv of one tap": convolved(1, False),
    "gru": recurrent(True),
    "gru, no bias": recurrent(False),
    "unfold": lambda v, rows: ops.unfold(v, rows, 3),
    "delay": lambda v, rows: ops.delay(v, rows, 2),
    "delay beyond the end": lambda v, rows: ops.delay(v, rows, 40),
    "no delay": lambda v, rows: ops.delay(v, rows, 0),
    "positions": lambda v, rows: rows.positions(len(v)),
}


def read(stream: Stream, operation: Operation, x: Tensor) -> Tensor:
    """What an operation makes of the next places (B, n, D) of each row, (B, n, …)."""
    results = []

    def forward(items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        results.append(operation(x.flatten(0, 1), rows))
        return places

    stream.read(forward, torch.ones(x.shape[:2], dtype=torch.int64))
    return results[0].unflatten(0, x.shape[:2])


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_parts_of_rows_give_what_the_rows_give(name: str, parts: list[int]) -> None:
    operation, x = OPERATIONS[name], draws()(B, sum(parts), D).detach()
    rows = ops.rows_of(torch.full((B,), sum(parts)))
    want = operation(x.flatten(0, 1), rows).unflatten(0, (B, -1))
    stream = Stream(B)
    got = torch.cat([read(stream, operation, part) for part in x.split(parts, 1)], dim=1)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert stream.lengths.tolist() == [sum(parts)] * B


@pytest.mark.parametrize("backend", ["auto", "blocked", "reference"])
@pytest.mark.parametrize("shift", [-6.0, 1.0])  # something of the first place is left, or nothing
def test_a_long_history_leaves_the_state_of_its_steps(shift: float, backend: str) -> None:
    x = scan_inputs(600, 4, 8, gated=False)
    wide = {k: getattr(x, k).detach().view(2, 300, -1) for k in ("u", "dt", "B", "C")}
    block = x._replace(**wide | {"dt": wide["dt"] / 4 + shift, "A": x.A.detach()})
    with torch.no_grad():
        got = scan.scan_from_start(block, backend)
        want = scan.scan_from(block, torch.zeros(2, 4, 8, dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_half_precision_keeps_its_state_in_float32() -> None:
    x = scan_inputs(4, 4, 3)
    u, dt, b, c, z = (v.detach()[:4].bfloat16() for v in (x.u, x.dt, x.B, x.C, x.z))
    A, d, bias = (v.detach().float() for v in (x.A, x.D, x.dt_bias))
    stream = Stream(4)
    for _ in range(2):
        y = read(
            stream,
            lambda _, rows: ops.selective_scan(u, dt, A, b, c, d, z, bias, rows),
            torch.ones(4, 1, 1),
        )
        assert y.dtype == torch.bfloat16
        assert stream.carries[0].value.dtype == torch.float32


def test_what_an_operation_leaves_does_not_hold_what_came_before() -> None:
    stream = Stream(1)
    for name in ("conv", "gru", "scan", "unfold", "delay"):
        stream = Stream(1)
        read(stream, OPERATIONS[name], torch.ones(1, 5000, D, dtype=torch.float64))
        ((_, value),) = stream.carries
        assert value.untyped_storage().nbytes() == value.numel() * 8


def test_a_model_that_calls_other_operations_than_before_is_refused() -> None:
    x = torch.ones(1, 1, D, dtype=torch.float64)
    stream = Stream(1)
    read(stream, lambda v, rows: OPERATIONS["delay"](OPERATIONS["delay"](v, rows), rows), x)
    before = list(stream.carries)
    with pytest.raises(ValueError, match="fewer operations"):
        read(stream, OPERATIONS["delay"], x)
    with pytest.raises(ValueError, match="its call of gru"):
        read(stream, OPERATIONS["gru"], x)
    for other in (3, 1):
        with pytest.raises(ValueError, match="its call of delay"):
            read(stream, lambda v, rows, n=other: ops.delay(ops.delay(v, rows, n), rows, n), x)
    assert all(a.value is b.value for a, b in zip(stream.carries, before, strict=True))
    assert stream.lengths.tolist() == [1]
    stream = Stream(1)
    read(stream, lambda v, rows: v, x)
    with pytest.raises(ValueError, match="its call of delay"):
        read(stream, OPERATIONS["delay"], x)


q = torch.ones(1, 1, 2)
REFUSED: dict[str, Operation] = {
    "attend": lambda v, rows: ops.attend(q, q, q, rows),
    "attend reads": lambda v, rows: ops.attend(q, q, q, rows, torch.zeros(1, dtype=torch.int64)),
    "flip": lambda v, rows: ops.flip(v, rows, 1),
    "padded": lambda v, rows: ops.padded(v, rows, 9),
    "pointwise_attend": lambda v, rows: ops.pointwise_attend(q, q, q, rows, torch.ones(9), 1.0),
    "asks where its rows lie": lambda v, rows: v + rows.offsets[0],
    "it asks": lambda v, rows: ops.spread(v, rows, torch.zeros(1, dtype=torch.int64)),
    "from item to item: it": lambda v, rows: ops.packed(v[None], rows, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_items_before_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        read(Stream(1), REFUSED[name], torch.ones(1, 1, D))


def test_streams_are_joined_and_parted() -> None:
    """Rows of other lengths, one of them without a place so far."""
    operation = OPERATIONS["scan"]
    x, streams, want = draws()(3, 9, D).detach(), [], []
    for row, length in enumerate((4, 0, 8)):
        streams.append(Stream(1))
        whole = x[row : row + 1, : length + 1]
        if length:
            read(streams[-1], operation, whole[:, :-1])
        want.append(read(Stream(1), operation, whole)[:, -1])
    joined = Stream.joined(streams)
    last = torch.stack([x[0, 4], x[1, 0], x[2, 8]])[:, None]
    torch.testing.assert_close(read(joined, operation, last)[:, 0], torch.cat(want))
    parts = joined.parted()
    assert [int(part.lengths) for part in parts] == [5, 1, 9]
    ((_, value),) = joined.carries
    assert torch.equal(torch.cat([part.carries[0].value for part in parts]), value)
