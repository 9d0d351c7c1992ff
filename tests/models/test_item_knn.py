"""Item kNN against sets and loops in float64."""

import math
from itertools import permutations

import pytest
import torch

from sigma.models.item_knn import ItemKNN
from tests.models.checks import flat, last_scores, random_histories

K, L = 15, 6


def by_definition(
    histories: list[list[int]],
    queries: list[list[int]],
    neighbours: int = 100,
    shrinkage: float = 0.0,
    decay: float = 1.0,
    remind: bool = False,
) -> torch.Tensor:
    users = {i: {u for u, h in enumerate(histories) if i in h} for i in range(1, K + 1)}
    near: dict[int, dict[int, float]] = {}
    for i in users:
        similar = {
            j: len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + shrinkage)
            for j in users
            if j != i and users[i] & users[j]
        }
        least = sorted(similar.values(), reverse=True)[:neighbours][-1:]
        near[i] = {j: s for j, s in similar.items() if s >= least[0]}
    out = []
    for query in queries:
        history = query[-L:]
        terms: dict[int, list[float]] = {j: [] for j in users}
        for i in set(history):
            age = history[::-1].index(i)
            for j, s in near[i].items():
                terms[j].append(decay**age * s)
        out.append(
            [0.0 if j in history and not remind else math.fsum(terms[j]) for j in range(1, K + 1)]
        )
    return torch.tensor(out, dtype=torch.float64).float()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neighbours": 1},
        {"neighbours": 3},
        {"neighbours": 3, "shrinkage": 2.5},
        {"decay": 0.7},
        {"neighbours": 5, "shrinkage": 1.0, "decay": 0.9, "remind": True},
    ],
    ids=str,
)
def test_equals_the_definition(options: dict) -> None:
    histories = random_histories(25, K, 9)
    queries = random_histories(40, K, 2 * L, seed=1)  # some longer than is read, with repeats
    model = ItemKNN(K, L, **options)
    model.count(*flat(histories))
    got = last_scores(model, queries, 2 * L)
    assert torch.equal(got, by_definition(histories, queries, **options))


def test_equal_sums_of_different_items_tie_exactly() -> None:
    # Item 7 occurs i times beside item i, item 8 so 7 - i times: the same terms in another order.
    histories = [[i, 7] for i in range(1, 7) for _ in range(i)]
    histories += [[i, 8] for i in range(1, 7) for _ in range(7 - i)]
    model = ItemKNN(8, 6)
    model.count(*flat(histories))
    queries = [list(query) for query in permutations(range(1, 7))]
    scores = last_scores(model, queries, 6)
    assert torch.equal(scores[:, 6], scores[:, 7])
    assert (scores == scores[0]).all()
