"""The simulator: reproducible, long-tailed, and its claimed probabilities are the true ones."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.simulator import DAY, SUCCESSORS, Shop
from sigma.simulate import Sampler
from tests.datamodules.test_datasets import dataset


@pytest.fixture(scope="module")
def data() -> Simulated:
    return Simulated(Shop())


def shop_items(data: Simulated) -> np.ndarray:
    """(n,) the shop's own numbers of ``data.sequences.items``."""
    return data.sequences.item_ids[data.sequences.items - 1]


def probabilities(data: Simulated, positions: np.ndarray, **settings: float) -> np.ndarray:
    """(m, I) of the shop's own items, were its settings these."""
    shop = replace(data.shop, **settings)
    return shop.probabilities(shop_items(data), data.sequences.offsets, positions)


def hit_rate(data: Simulated, scores: np.ndarray, positions: np.ndarray, k: int = 10) -> float:
    """HR@k of ``scores`` (m, items) for the targets at ``positions``."""
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    return float((best == data.sequences.items[positions, None] - 1).any(axis=1).mean())


def test_same_seed_same_data_and_more_users_shop_in_the_same_catalogue() -> None:
    shop = Shop(num_users=200)
    one, two, other = (s.interactions() for s in (shop, replace(shop), replace(shop, seed=1)))
    first, again, another = (data.frame() for data in (one, two, other))
    assert first.equals(again)
    assert not first["item"][:500].equals(another["item"][:500])
    for small, large in zip(shop.catalogue, replace(shop, num_users=99).catalogue, strict=True):
        np.testing.assert_array_equal(small, large)


def test_default_sizes_and_long_tails(data: Simulated) -> None:
    sequences = data.sequences
    lengths = np.diff(sequences.offsets)
    assert (sequences.num_users, sequences.num_items) == (2500, 500)
    assert 25_000 < len(sequences.items) < 33_000
    assert (lengths.min(), lengths.max()) == (5, 100)
    assert 7 <= np.median(lengths) < 0.85 * lengths.mean()
    assert 0.05 < (lengths > 20).mean() < 0.2
    counts = np.sort(np.bincount(sequences.items)[1:])
    gini = 1 - 2 * (np.cumsum(counts) / counts.sum()).mean()
    assert gini > 0.3
    assert counts[-1] > 20 * counts[0]
    assert data.survivors == 1.0
    # In the shop's own order, on which weights of earlier runs rest.
    assert sequences.user_ids.tolist() == list(range(data.shop.num_users))
    assert sequences.item_ids.tolist() == list(range(data.shop.num_items))
    # Titles and genres follow the ids of the sequences.
    category = data.shop.catalogue.category[sequences.item_ids[6]]
    names = [f"item {sequences.item_ids[6]}", f"category {category}"]
    assert sequences.item_info.iloc[6].tolist() == names


def test_days_have_ties_and_keep_the_order_of_purchase(data: Simulated) -> None:
    times = data.shop.interactions().frame()["time"].to_numpy()
    assert (times % DAY == 0).all()
    assert (np.diff(times) >= 0).all()
    inside = np.ones(len(times) - 1, dtype=bool)
    inside[data.sequences.offsets[1:-1] - 1] = False
    gaps = np.diff(data.sequences.timestamps)[inside]
    assert (gaps >= 0).all()
    assert (gaps == 0).mean() == pytest.approx(data.shop.same_day, abs=0.02)
    # The chain of successors shows only in the true order, so ties must not have been shuffled.
    items = shop_items(data)
    follows = (data.shop.catalogue.successors[items[:-1]] == items[1:, None]).any(1)[inside]
    assert follows[gaps == 0].mean() == pytest.approx(follows[gaps > 0].mean(), abs=0.03)
    assert follows.mean() > data.shop.short_term


def slow_probabilities(shop: Shop, history: list[int]) -> np.ndarray:
    """The module's equation, term by term."""
    tables = shop.catalogue
    interest = np.zeros(shop.num_categories)
    for age, item in enumerate(reversed(history)):
        interest[tables.category[item]] += shop.decay**age
    interest = interest**shop.focus / (interest**shop.focus).sum()
    p = np.zeros(shop.num_items)
    for item in range(shop.num_items):
        category = tables.category[item]
        share = tables.popularity[item] / tables.popularity[tables.category == category].sum()
        p[item] = (
            shop.short_term * sum(np.array(SUCCESSORS)[tables.successors[history[-1]] == item])
            + shop.long_term * interest[category] * share
            + (1 - shop.short_term - shop.long_term) * tables.popularity[item]
        )
    return p


def test_oracle_equals_the_slow_version(data: Simulated) -> None:
    items, offsets = shop_items(data), data.sequences.offsets
    positions = np.concatenate([data.split.test[:5], data.split.train[:5], data.split.val[-3:]])
    fast = probabilities(data, positions)
    np.testing.assert_allclose(fast.sum(1), 1)
    for position, p in zip(positions, fast, strict=True):
        history = items[offsets[offsets <= position].max() : position].tolist()
        np.testing.assert_allclose(p, slow_probabilities(data.shop, history))
    with pytest.raises(ValueError, match="history"):
        data.shop.probabilities(items, offsets, offsets[:1])


def in_memory(shop: Shop) -> pd.DataFrame:
    return shop.interactions().frame()


def as_file(shop: Shop) -> pd.DataFrame:
    groups = [pd.DataFrame(group._asdict()) for group, _ in Sampler(shop).groups()]
    return pd.concat(groups).set_axis(["user", "item", "time"], axis=1)


@pytest.mark.parametrize("purchases", [in_memory, as_file])
def test_purchases_follow_the_claimed_probabilities(
    purchases: Callable[[Shop], pd.DataFrame],
) -> None:
    """Chi-square of the third purchase in a shop so small that histories repeat often."""
    shop = Shop(num_users=60_000, num_items=8, num_categories=3, shortest=3, longest=3)
    items = purchases(shop).sort_values("user", kind="stable")["item"].to_numpy().reshape(-1, 3)
    offsets = np.arange(0, items.size + 1, 3)
    claimed = shop.probabilities(items.ravel(), offsets, offsets[:-1] + 2)
    history = items[:, 0] * 8 + items[:, 1]
    statistic, cells = 0.0, 0
    for code in np.unique(history):
        rows = history == code
        np.testing.assert_allclose(claimed[rows], claimed[rows][:1].repeat(rows.sum(), 0))
        expected = claimed[rows][0] * rows.sum()
        seen = np.bincount(items[rows, 2], minlength=8)
        usable = expected >= 5
        statistic += ((seen - expected)[usable] ** 2 / expected[usable]).sum()
        cells += usable.sum()
    assert cells > 300
    # At most one degree of freedom a history is lost; mean and variance bracket the statistic.
    freedom = cells - len(np.unique(history))
    assert freedom - 5 * np.sqrt(2 * freedom) < statistic < cells + 5 * np.sqrt(2 * cells)


@pytest.mark.parametrize("split", ["val", "test"])
def test_realised_hits_are_those_expected_and_beat_simple_rankings(
    data: Simulated, split: str
) -> None:
    positions, sequences = getattr(data.split, split), data.sequences
    best = data.achievable_hit_rate(10, split)
    realised = hit_rate(data, probabilities(data, positions)[:, sequences.item_ids], positions)
    assert abs(realised - best) < 3 * np.sqrt(best * (1 - best) / len(positions))
    assert 0.7 < best < 0.75

    items = sequences.items - 1
    popularity = data.item_counts().double().numpy()
    follows = np.zeros((500, 500))
    np.add.at(follows, (items[data.split.train - 1], items[data.split.train]), 1)
    markov = follows + 1e-6 * popularity
    by_popularity = hit_rate(data, popularity[None].repeat(len(positions), 0), positions)
    by_markov = hit_rate(data, markov[items[positions - 1]], positions)
    assert 0.05 < by_popularity < 0.12
    assert by_popularity + 0.3 < by_markov < best - 0.2
    # Short-term and long-term parts both matter: dropping either costs hits.
    for short_term, long_term in ((0.0, 0.9), (0.9, 0.0)):
        scores = probabilities(data, positions, short_term=short_term, long_term=long_term)
        assert hit_rate(data, scores[:, sequences.item_ids], positions) < best - 0.15


def test_achievable_by_hand(data: Simulated) -> None:
    """Without a user's memory the k best of T are all there is: k=1 finds the first successor."""
    shop = Shop(num_users=300, short_term=0.999, long_term=0.0)
    module = Simulated(shop, item_bounds=(None, None))
    for k in (1, 2, 3):
        expected = module.achievable_hit_rate(k)
        assert expected == pytest.approx(sum(SUCCESSORS[:k]), abs=0.02)
    assert data.achievable_hit_rate(10_000) == pytest.approx(1)
    # It is not known where settings change the process.
    for options in ({"duplicates": "first"}, {"item_bounds": (20, None)}):
        assert Simulated(Shop(num_users=800), **options).achievable_hit_rate() is None


OUT_OF_RANGE: list[dict] = [
    *({"num_users": 0}, {"num_categories": 600}, {"shortest": 9, "longest": 8}, {"decay": 0.0}),
    *({"median_extra": 0.0}, {"spread_extra": -1.0}, {"short_term": -0.1}, {"focus": 0.0}),
    *({"short_term": 0.5, "long_term": 0.5}, {"same_day": 1.0}, {"seed": -1}),
]


@pytest.mark.parametrize("settings", [*OUT_OF_RANGE, {"path": "mine.csv"}, {"max_lenght": 20}])
def test_settings_that_cannot_be_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        (Shop if settings in OUT_OF_RANGE else Simulated)(**settings)


def test_config_is_the_default_shop_whatever_the_training_seed(data: Simulated) -> None:
    module = dataset("simulated")
    assert (module.seed, module.name, module.shop) == (5, "simulated", Shop())
    np.testing.assert_array_equal(module.sequences.items, data.sequences.items)
    batch = next(iter(module.train_dataloader()))
    assert (len(batch.users), batch.rows.longest) == (128, 15)
