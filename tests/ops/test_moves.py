"""Moves of states between places, by their gradients too, and rows themselves."""

import pytest
import torch

from sigma import ops
from sigma.ops import Rows, padded, places_of, reference, rows_of, take
from tests.ops.cases import ROWS, draws, rows_case, same

each_case = pytest.mark.parametrize("case", [name for name in ROWS if name != "only a tail"])


@each_case
@pytest.mark.parametrize("keep", [0, 2, 20])
def test_flip(case: str, keep: int) -> None:
    rows, size = rows_case(case)
    x, end = draws()(size, 4), int(rows.offsets[-1])
    y = ops.flip(x, rows, keep)
    same(y[:end], reference.flip(x, rows.offsets, keep)[:end], [x])
    assert torch.equal(y[end:], x[end:])


@each_case
def test_padded_and_packed_undo_each_other(case: str) -> None:
    rows, size = rows_case(case)
    x, width = draws()(size, 4), rows.longest + 2
    wide = padded(x, rows, width)
    lengths, ends = ROWS[case][0], rows.offsets.tolist()
    parts = zip(x.split([*lengths, size - ends[-1]]), lengths, strict=False)
    same(wide, torch.stack([torch.cat([v, v.new_zeros(width - n, 4)]) for v, n in parts]), [x])
    same(ops.packed(wide, rows, size), torch.cat([x[: ends[-1]], 0 * x[ends[-1] :].detach()]), [x])
    with pytest.raises(ValueError, match="do not fit"):
        padded(x, rows, rows.longest - 1)


@each_case
def test_states_are_taken_where_they_are_wanted(case: str) -> None:
    rows, size = rows_case(case)
    x, index = draws()(size, 4), torch.arange(0, int(rows.offsets[-1]), 2)
    same(take(x, places_of(index, size)), x[index], [x])
    width = rows.longest + 1
    wide = padded(x, rows, width).flatten(0, 1)
    same(take(wide, ops.padded_places(rows, index, width)), x[index], [x])


@each_case
def test_unfold_puts_earlier_states_beside_each(case: str) -> None:
    rows, size = rows_case(case)
    x, width, ends = draws()(size, 3), 3, rows.offsets.tolist()
    out = []
    for t in range(size):
        row = next((b for b in range(len(ends) - 1) if ends[b] <= t < ends[b + 1]), None)
        for back in (2, 1, 0):
            real = row is not None and t - back >= ends[row]
            out.append(x[t - back] if real else 0 * x[t])
    same(ops.unfold(x, rows, width), torch.stack(out).view(size, -1), [x])


@each_case
@pytest.mark.parametrize("number", [0, 2, 20])
def test_delay(case: str, number: int) -> None:
    rows, size = rows_case(case)
    x, ends, out = draws()(size, 3), rows.offsets.tolist(), []
    for t in range(size):
        row = next((b for b in range(len(ends) - 1) if ends[b] <= t < ends[b + 1]), None)
        real = row is not None and t - number >= ends[row]
        out.append(x[t - number] if real else 0 * x[t])
    same(ops.delay(x, rows, number), torch.stack(out), [x])


def test_places_that_fill_up_and_values_spread_over_a_row() -> None:
    x = draws()(6, 2)
    taken = take(x, places_of(torch.tensor([1, 4, 5, 5, 5]), 6))
    (grad,) = torch.autograd.grad(taken[:2].sum(), x)
    assert grad[:, 0].tolist() == [0, 1, 0, 0, 1, 0]
    rows, _ = rows_case("mixed")
    x, places = draws()(6, 2, 3), torch.tensor([0, 2, 4, 5, 10, 12, 17])
    same(ops.spread(x, rows, places), x[torch.tensor([0, 0, 2, 2, 2, 4, 5])], [x])


def test_rows_tell_row_and_position_of_each_place() -> None:
    rows = Rows(torch.tensor([0, 3, 3, 5]), 3)
    assert rows.row_of(torch.arange(7)).tolist() == [0, 0, 0, 2, 2, 3, 3]
    assert rows.positions(7).tolist() == [0, 1, 2, 0, 1, 0, 1]
    same = rows_of(torch.tensor([3, 0, 2]))
    assert same.offsets.tolist() == [0, 3, 3, 5]
    assert same.longest == 3
