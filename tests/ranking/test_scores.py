"""Both rankings and what lies beyond accuracy, against loops over users and items."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sigma.datamodules.batches import Batch, FlatSequences
from sigma.models.base import Model
from sigma.ops import Rows
from sigma.ranking import scores as scores_module
from sigma.ranking.metrics import ALL, UNSEEN, RankingMetrics
from sigma.ranking.scores import ranks

K, TOP = 23, 5
COUNTS = torch.tensor([7, 0, 3, 3, 1] + [2] * 18)


class Table(Model):
    """Scores given for each row."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        return self.table

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return states if items is None else states.gather(1, items - 1)


def flat(users: int = 60) -> FlatSequences:
    """Histories with repeated items, and repeated targets."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 30, (users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, K + 1, (int(offsets[-1]),), generator=generator)
    return FlatSequences(items, offsets, 6)


@pytest.fixture(params=["floats", "ties", "nan"])
def case(request: pytest.FixtureRequest) -> tuple[Batch, Tensor]:
    data = flat()
    batch = data.batch(data.offsets[1:] - 1, evaluates=True)
    table = torch.randn(len(batch.targets), K, generator=torch.Generator().manual_seed(1))
    if request.param == "ties":
        table = table.round()
    if request.param == "nan":
        table[table > 1.5] = math.nan
    return batch, table


def slow(batch: Batch, table: Tensor, name: str) -> Iterator[tuple[int, int, int, list[int]]]:
    """Of each user: items above the target, ties, whether the target is seen, all candidates."""
    ends = batch.history_lengths.cumsum(0).tolist()
    for row, (end, length) in enumerate(zip(ends, batch.history_lengths.tolist(), strict=True)):
        target, seen = int(batch.targets[row]), set(batch.history[end - length : end].tolist())
        gone = seen - {target} if name == UNSEEN else set()
        others = [i for i in range(1, K + 1) if i not in gone and i != target]
        score = table[row, target - 1]
        above = [i for i in others if not table[row, i - 1] <= score]
        equal = [i for i in others if table[row, i - 1] == score]
        yield len(above), len(equal), target in seen, [*others, target]


@pytest.mark.parametrize(("chunk", "spare"), [(4, 16), (10_000, 16), (10_000, 1), (7, 3)])
def test_both_rankings_against_a_loop(
    case: tuple[Batch, Tensor], chunk: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, table = case
    monkeypatch.setattr(scores_module, "SPARE", spare)
    monkeypatch.setattr(scores_module, "MIN_ROWS", chunk)
    monkeypatch.setattr(scores_module, "chunk_rows", lambda *_: chunk)
    result = ranks(Table(table.clone()).requires_grad_(False), batch, k=TOP)
    assert list(result.rankings) == [ALL, UNSEEN]
    for name, ranking in result.rankings.items():
        expected = list(slow(batch, table, name))
        assert 5 < sum(seen for _, _, seen, _ in expected) < 55
        assert ranking.greater.tolist() == [above for above, *_ in expected]
        assert ranking.ties.tolist() == [equal for _, equal, *_ in expected]
        for row, (*_, candidates) in enumerate(expected):
            top = ranking.top[row].tolist()
            best = table[row, torch.tensor(candidates) - 1].sort(descending=True).values[:TOP]
            assert set(top) <= {*candidates, 0}
            values = table[row, torch.tensor([i for i in top if i]) - 1]
            torch.testing.assert_close(values, best, equal_nan=True, rtol=0, atol=0)


def test_what_repeats_the_last_item_finds_no_unseen_one() -> None:
    """HR is 0, and among all items what the share of repeated targets says."""
    data = flat()
    batch = data.batch(data.offsets[1:] - 1, evaluates=True)
    last = batch.items[batch.rows.offsets[1:] - 1]
    other = batch.targets != last
    table = nn.functional.one_hot(last - 1, K).float()
    metrics = RankingMetrics((1,), rankings=(ALL, UNSEEN))
    result = ranks(Table(table).requires_grad_(False), batch, k=1)
    metrics.update(result.rankings, result.history_lengths)
    values = metrics.compute()
    assert values["hr@1"] == pytest.approx(1 - float(other.float().mean()))
    unseen = result.rankings[UNSEEN]
    assert (unseen.ties[other] > 0).all()  # the last item is not there: all others are alike
    assert not (unseen.top[:, 0][other] == last[other]).any()


def test_beyond_accuracy_against_a_loop(case: tuple[Batch, Tensor]) -> None:
    batch, table = case
    ks = (1, 2, TOP)
    metrics = RankingMetrics(ks, item_counts=COUNTS)
    result = ranks(Table(table.clone()).requires_grad_(False), batch, k=TOP)
    half = len(batch.targets) // 2
    for part in (slice(0, half), slice(half, None)):
        rankings = {
            name: type(ranking)(*(values[part] for values in ranking))
            for name, ranking in result.rankings.items()
        }
        metrics.update(rankings, result.history_lengths[part])
    got = metrics.compute()
    assert set(metrics.names) >= set(got)
    total = int(COUNTS.sum())
    head = sorted(range(1, K + 1), key=lambda i: -int(COUNTS[i - 1]))[: math.ceil(K / 5)]
    for name, ranking in result.rankings.items():
        for k in ks:
            shown = [i for row in ranking.top[:, :k].tolist() for i in row if i]
            bits = [-math.log2(max(int(COUNTS[i - 1]), 1) / total) for i in shown]
            want = len(set(shown)) / K, sum(bits) / len(bits), sum(i in head for i in shown)
            assert got[f"{name}coverage@{k}"] == pytest.approx(want[0])
            assert got[f"{name}novelty@{k}"] == pytest.approx(want[1])
            assert got[f"{name}head@{k}"] == pytest.approx(want[2] / len(shown))
