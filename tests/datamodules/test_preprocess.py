"""Filtering against a brute-force reference, order and ties, duplicates, dense ids; two ways."""

from collections import Counter

import numpy as np
import pytest

from sigma.datamodules import in_memory
from sigma.datamodules.interactions import Interactions
from sigma.datamodules.preprocess import Bounds, Duplicates, Sequences, preprocess
from sigma.errors import UserError
from tests.runs.front_door import Logged, Patch


@pytest.fixture(autouse=True, params=["in memory", "out of core"])
def _room(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    if request.param == "out of core":
        monkeypatch.setattr(in_memory, "ROWS", 0)


def interactions(rows: list[tuple[int, int, int]], timed: bool = True) -> Interactions:
    """Rows (user, item, time) -> Interactions; raw ids are the numbers themselves."""
    users, items, times = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    return Interactions.of(users, items, times if timed else None)


def histories(data: Sequences) -> dict[int, list[tuple[int, int | None]]]:
    """Raw user -> [(raw item, time)] in order."""
    items = data.item_ids[data.items - 1].tolist()
    times = [None] * len(items) if data.timestamps is None else data.timestamps.tolist()
    pairs = list(zip(items, times, strict=True))
    spans = zip(data.user_ids.tolist(), data.offsets, data.offsets[1:], strict=False)
    return {user: pairs[start:stop] for user, start, stop in spans}


def reference(
    rows: list[tuple[int, int, int]], users: Bounds, items: Bounds
) -> dict[int, list[tuple[int, int]]]:
    """The same in plain Python: filter both sides until nothing changes, then order by time."""

    def fits(count: int, bounds: Bounds) -> bool:
        return (bounds[0] or 0) <= count and (bounds[1] is None or count < bounds[1])

    while True:
        by_user, by_item = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
        left = [r for r in rows if fits(by_user[r[0]], users) and fits(by_item[r[1]], items)]
        if len(left) == len(rows):
            break
        rows = left
    out: dict[int, list[tuple[int, int]]] = {}
    for user, item, time in rows:
        out.setdefault(user, []).append((item, time))
    return {u: sorted(h, key=lambda pair: pair[1]) for u, h in out.items()}


BOUNDS: list[tuple[Bounds, Bounds]] = [
    ((None, None), (None, None)),
    ((3, None), (3, None)),
    ((5, None), (5, None)),
    ((5, 12), (5, 12)),
    ((None, 9), (2, None)),
    ((4, 30), (None, 15)),
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("users", "items"), BOUNDS)
def test_filter_and_order_against_brute_force(seed: int, users: Bounds, items: Bounds) -> None:
    rng = np.random.default_rng(seed)
    n = 250
    columns = rng.zipf(1.6, n) % 40, rng.zipf(1.5, n) % 30, rng.integers(0, 20, n)
    rows = [tuple(map(int, row)) for row in zip(*columns, strict=True)]
    expected = reference(rows, users, items)
    if not expected:
        with pytest.raises(UserError, match="No interactions are left after keeping users in"):
            preprocess(interactions(rows), users, items)
        return
    data = preprocess(interactions(rows), users, items)
    assert histories(data) == expected
    order = list(dict.fromkeys(row[0] for row in rows))  # users by first appearance in the file
    assert list(histories(data)) == [user for user in order if user in expected]
    assert sorted(set(data.items)) == list(range(1, data.num_items + 1))
    assert data.items.dtype == np.int32


def test_ties_keep_the_order_of_the_file() -> None:
    rows = [(1, 5, 3), (2, 1, 0), (1, 4, 2), (1, 3, 3), (1, 2, 2), (1, 1, 3)]
    assert [i for i, _ in histories(preprocess(interactions(rows)))[1]] == [4, 2, 5, 3, 1]
    assert list(histories(preprocess(interactions(rows), (None, 5)))) == [2]  # below, not at


def test_times_one_second_apart_stay_apart() -> None:
    late, early = 900_000_001, 900_000_000
    assert np.float32(late) == np.float32(early)  # what RecBole sorts by
    data = preprocess(interactions([(1, 5, late), (1, 6, early)]))
    assert histories(data)[1] == [(6, early), (5, late)]
    rounded = preprocess(interactions([(1, 5, late), (1, 6, early)]), float32_times=True)
    assert histories(rounded)[1] == [(5, early), (6, early)]  # a tie, in the file's order
    data = preprocess(interactions([(1, 5, 9), (2, 5, 9), (1, 4, 1), (1, 3, 5)], timed=False))
    assert histories(data)[1] == [(5, None), (4, None), (3, None)]  # the file's order


@pytest.mark.parametrize("timed", [True, False])
def test_duplicates_are_kept_unless_dropped(timed: bool) -> None:
    rows = [(1, 5, 9), (1, 4, 1), (1, 5, 2), (2, 5, 0), (2, 4, 3), (1, 4, 1)]
    assert len(preprocess(interactions(rows, timed)).items) == 6
    dropped = histories(preprocess(interactions(rows, timed), duplicates="first"))
    assert [i for i, _ in dropped[1]] == ([4, 5] if timed else [5, 4])
    assert [i for i, _ in dropped[2]] == [5, 4]
    rows = [(1, 5, t) for t in range(6)] + [(2, i, 0) for i in (5, 6)]
    data = preprocess(interactions(rows, timed), (2, None), duplicates="first")
    assert list(histories(data)) == [2]  # dropped before they are counted


@pytest.mark.parametrize("bounds", [(5, 5), (6, 5)])
def test_bounds_that_keep_nothing(bounds: Bounds) -> None:
    with pytest.raises(ValueError, match=r"user_bounds=\[\d, 5\) keeps nothing"):
        preprocess(interactions([(1, 1, 1)]), bounds)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("ends", [(), (90, 200, 300)])
@pytest.mark.parametrize("duplicates", ["keep", "identical", "consecutive", "first"])
def test_both_ways_are_the_same(
    duplicates: Duplicates, ends: tuple[int, ...], numbered: bool, monkeypatch: Patch
) -> None:
    rng = np.random.default_rng(5)
    columns = rng.zipf(1.6, 300) % 40, rng.zipf(1.5, 300) % 30, rng.integers(0, 9, 300) * 10**9
    bounds: Bounds = (None, None) if ends else (3, 40)

    def result(rows: int, seed: int) -> Sequences:
        monkeypatch.setattr(in_memory, "ROWS", rows)
        data = Interactions.of(*(column[:300] for column in columns))
        data.ends, data.unit, data.numbered = ends, 10**7, numbered
        return preprocess(data, bounds, bounds, duplicates, float32_times=bool(seed))

    if ends and duplicates != "keep":
        for rows in (0, 1000):
            with pytest.raises(UserError, match="The filters would leave out"):
                result(rows, 0)
        return
    for seed in (0, 1):
        ours, theirs = result(1000, seed), result(0, seed)
        assert ours.fingerprint() == theirs.fingerprint()
        for name in ("items", "offsets", "timestamps", "user_ids", "item_ids", "parts"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name


def test_ids_written_in_two_ways_are_told(caplog: Logged) -> None:
    users = np.array(["1", "1.0", " a", "a", "b", "c.5", "c"], dtype=object)
    preprocess(Interactions.of(users, users[::-1].copy()))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(message.startswith("2 of the ") for message in messages)
