"""The shop as a file: the same law as the shop in memory, and its best possible hit rate."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sigma import simulate
from sigma.datamodules.sets.custom import Custom
from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.simulator import DAY, Shop
from sigma.simulate import PART, Sampler, main
from tests.runs.front_door import Capture, Patch


def test_file_is_the_shop_that_is_asked_for(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(simulate, "GROUP", 100_000)
    path = tmp_path / "new" / "shop.parquet"
    main([f"out={path}", "users=20000", "--longest=60", "decay=0.8"])
    shop = Shop(num_users=20_000, longest=60, decay=0.8)
    file = pq.ParquetFile(path)
    assert [str(kind) for kind in file.schema_arrow.types] == ["int32", "int32", "int64"]
    assert file.num_row_groups == 2  # of two parts, and of what is left
    parts = [file.read_row_group(place).to_pandas() for place in range(2)]
    assert [part["user_id"].nunique() for part in parts] == [2 * PART, 20_000 - 2 * PART]
    assert all(part["timestamp"].is_monotonic_increasing for part in parts)
    frame = pd.concat(parts)
    assert (frame["timestamp"] % DAY == 0).all()

    lengths = frame["user_id"].value_counts()
    expected = shop.lengths(100_000, np.random.default_rng(0))
    assert (lengths.min(), lengths.max()) == (5, 60)
    assert lengths.mean() == pytest.approx(expected.mean(), rel=0.03)
    # A user's number does not tell how many purchases it has.
    assert abs(np.corrcoef(lengths.index % PART, lengths)[0, 1]) < 0.03
    gaps = frame.groupby("user_id")["timestamp"].diff().dropna()
    assert (gaps == 0).mean() == pytest.approx(shop.same_day, abs=0.01)
    assert gaps[gaps > 0].mean() / DAY == pytest.approx(10, rel=0.02)

    out = capsys.readouterr().out
    rate, users = Sampler(shop).achievable()
    assert f"{len(frame):,} interactions of 20,000 users" in out
    assert f"HR@10 of a user's last item {rate:.4f}, by {users:,} users" in out
    # Read as any file, it has the hit rate that the command claims.
    data = Custom(path=str(path), root=str(tmp_path), item_bounds=(None, None))
    assert shop.achievable(data.sequences, data.split.test) == pytest.approx(rate, abs=0.005)
    items, offsets = data.sequences.item_ids[data.sequences.items - 1], data.sequences.offsets
    some = data.split.test[:8000]
    p = shop.probabilities(items, offsets, some)
    hits = (np.argpartition(-p, 10, axis=1)[:, :10] == items[some, None]).any(axis=1).mean()
    assert hits == pytest.approx(rate, abs=0.02)


def test_follows_what_the_shop_in_memory_follows() -> None:
    """Items by popularity, successors and categories kept, of many categories and few."""
    shop = Shop(num_users=9000, num_items=300, num_categories=90, longest=30, focus=1.4)
    drawn = next(Sampler(shop).groups())[0]
    frame = pd.DataFrame(drawn._asdict()).set_axis(["user", "item", "time"], axis=1)
    tables = shop.catalogue
    seen = []
    for one in (frame, shop.interactions().frame()):
        one = one.sort_values("user", kind="stable").reset_index(drop=True)
        again = one["user"].eq(one["user"].shift())[1:].to_numpy()
        items = one["item"].to_numpy()
        before, after = items[:-1][again], items[1:][again]
        seen.append(
            [
                (tables.category[before] == tables.category[after]).mean(),
                *(tables.successors[before] == after[:, None]).mean(axis=0),
                tables.popularity[items].mean() * 100,
            ]
        )
    np.testing.assert_allclose(seen[0], seen[1], atol=0.01)


def test_more_users_change_the_last_part_alone() -> None:
    shop = Shop(num_users=PART + 5)
    small, large = Sampler(shop), Sampler(replace(shop, num_users=3 * PART))
    for one, other in zip(small.part(0), large.part(0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.unique(small.part(1).users).tolist() == list(range(PART, PART + 5))
    assert not np.array_equal(small.part(0).items[:99], large.part(1).items[:99])
    rate, users = Sampler(Shop(num_users=2000)).achievable()
    assert users == 2000
    assert rate == pytest.approx(Simulated(Shop()).achievable_hit_rate(), abs=0.02)
    assert Sampler(Shop(num_users=9, shortest=1, longest=1)).achievable()[1] == 0


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("users=0", "num_users: Input should be greater than or equal to 1"),
        ("shortest=9 longest=8", "shortest must not exceed longest"),
        ("users=3000000000", "Ids are int32"),
    ],
)
def test_shops_that_cannot_be(typed: str, sentence: str, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([f"out={tmp_path / 'shop.parquet'}", *typed.split()])
    assert stop.value.code == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
