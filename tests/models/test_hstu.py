"""HSTU: its equations in loops, what it knows of time, and its start."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.models.hstu import HSTU, TransductionUnit
from sigma.ops import Rows
from tests.models import checks, slow
from tests.models.checks import K, assert_same, every_state, tiny

LONGEST = 7
TIMES = [None, "history", "target"]
by_time = pytest.mark.parametrize("time", TIMES)


def timed(lengths: tuple[int, ...] = (7, 1, 2, 5)) -> tuple[Tensor, Rows]:
    """Items, and rows whose times are from none to months apart; the next ones reach beyond."""
    items, rows = checks.packed(*checks.padded(lengths, LONGEST))
    generator = torch.Generator().manual_seed(3)
    times, after = [], []
    for n in lengths:
        gaps = (torch.rand(n + 1, generator=generator).double() * 16).exp().long()
        gaps[n // 2] = 0
        at = 10**9 + gaps.cumsum(0)
        times.append(at[:-1])
        after.append(at[1:])
    return items, rows._replace(times=torch.cat(times), next_times=torch.cat(after))


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-6).sqrt()


def unit(
    xs: list[Tensor], p: TransductionUnit, heads: int, queries: list[int], keys: list[int]
) -> list[Tensor]:
    size = len(xs[0])
    d = size // heads
    us, vs, qs, ks = [], [], [], []
    for x in xs:
        y = slow.silu(p.maps.weight @ norm(x))
        for part, values in zip(y.split(size), (us, vs, qs, ks), strict=True):
            values.append(part)
    out = []
    for t, x in enumerate(xs):
        mixed = []
        for h in range(heads):
            part, total = slice(h * d, (h + 1) * d), torch.zeros(d, dtype=x.dtype)
            for s in range(t + 1):
                score = (qs[t][part] * ks[s][part]).sum() + p.distance_bias[t - s]
                if p.time_bias is not None:
                    gap = max(abs(queries[t] - keys[s]), 1)
                    score = score + p.time_bias[int(math.log(gap) / 0.301)]
                total = total + slow.silu(score) * vs[s][part] / LONGEST
            mixed.append(total)
        out.append(x + slow.linear(norm(torch.cat(mixed)) * us[t], p.out))
    return out


def row_states(model: HSTU, items: Tensor, queries: list[int], keys: list[int]) -> list[Tensor]:
    table, size = model.items.weight, model.items.embedding_dim
    positions = model.positions.table.weight
    xs = [math.sqrt(size) * table[i] + positions[t] for t, i in enumerate(items)]
    for layer in model.layers:
        heads = layer.num_heads  # type: ignore[union-attr]
        xs = unit(xs, layer, int(heads), queries, keys)  # type: ignore[arg-type]
    return xs


@by_time
@pytest.mark.parametrize("options", [{}, {"num_heads": 1, "num_layers": 3}], ids=str)
def test_equals_the_equations_with_gradients(time: Any, options: dict[str, Any]) -> None:
    model = tiny(HSTU, time=time, **options)
    items, rows = timed()
    want = []
    for first, stop in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        part = slice(int(first), int(stop))
        times, after = rows.times[part].tolist(), rows.next_times[part].tolist()  # type: ignore[index]
        want += row_states(model, items[part], after if time == "target" else times, times)
    some = [2, 6, 7, 11, 14]
    got = every_state(model, items, rows), model(items, rows, torch.tensor(some))
    assert_same(model, torch.cat(got), torch.stack([*want, *(want[i] for i in some)]))


@by_time
def test_a_state_reads_nothing_later_but_the_targets_time_if_it_says_so(time: Any) -> None:
    model = tiny(HSTU, time=time)
    items, rows = timed()
    before = every_state(model, items, rows)
    for place in range(LONGEST):  # of the first row; of its last place only the target is later
        changed = items.clone()
        changed[place + 1 : LONGEST] = changed[place + 1 : LONGEST] % K + 1
        assert rows.times is not None
        assert rows.next_times is not None
        times, after = rows.times.clone(), rows.next_times.clone()
        times[place + 1 : LONGEST] += 10**7
        after[place:LONGEST] += 10**7
        later = rows._replace(times=times, next_times=after)
        states = every_state(model, changed, later)
        torch.testing.assert_close(states[:place], before[:place])
        # The place's own state.
        assert torch.allclose(states[place], before[place]) == (time != "target")


def test_times_that_are_not_read_need_not_be_there() -> None:
    items, rows = timed()
    plain = Rows(rows.offsets, rows.longest)
    history = plain._replace(times=rows.times)
    model = tiny(HSTU)
    assert torch.equal(every_state(model, items, plain), every_state(model, items, rows))
    model = tiny(HSTU, time="history")
    assert torch.equal(every_state(model, items, history), every_state(model, items, rows))
    for time, poor in (("history", plain), ("target", history)):
        with pytest.raises(ValueError, match=f"time={time} needs rows that carry those times"):
            every_state(tiny(HSTU, time=time), items, poor)


def test_hours_shift_nothing_and_gaps_do() -> None:
    """All times moved by as much leave all states; days between items do not."""
    items, rows = timed()
    model = tiny(HSTU, time="history")
    before = every_state(model, items, rows)
    assert rows.times is not None
    assert torch.equal(every_state(model, items, rows._replace(times=rows.times + 3600)), before)
    wider = rows._replace(times=rows.times * 2)
    assert not torch.allclose(every_state(model, items, wider), before)


def test_starts_as_its_authors_code() -> None:
    torch.manual_seed(0)
    size, longest = 50, 200
    model = HSTU(2000, longest, size, time="target")
    unit = model.layers[0]
    assert isinstance(unit, TransductionUnit)
    assert unit.time_bias is not None
    for weight, std in (
        (model.items.weight[1:], 0.02),
        (model.positions.table.weight, math.sqrt(2 / (longest + size))),
        (unit.maps.weight, 0.02),
        (unit.distance_bias, 0.02),
        (unit.time_bias, 0.02),
        (unit.out.weight, math.sqrt(2 / (size + size))),
    ):
        assert abs(float(weight.detach().std()) - std) < 0.2 * std
    bound = math.sqrt(6 / (size + size))
    assert 0.98 * bound < unit.out.weight.abs().max() <= bound  # uniform
    # HSTU-large of its authors has as many parameters, but for 11 more positions and distances.
    large = HSTU(2000, longest, size, num_layers=8, num_heads=2, time="target")
    in_a_layer = size * 4 * size + size * size + size + 129 + longest
    want = 2001 * size + longest * size + 8 * in_a_layer
    assert sum(p.numel() for p in large.parameters()) == want


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads=3 must divide hidden_size=50"):
        HSTU(10, 5, num_heads=3)
