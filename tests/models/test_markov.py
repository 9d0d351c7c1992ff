"""The Markov chain against dictionaries of counts."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from sigma.models.markov import Markov
from tests.models.checks import flat, last_scores, random_histories


def by_definition(
    histories: list[list[int]], queries: list[list[int]], num_items: int, alpha: float
) -> torch.Tensor:
    popularity = Counter(item for history in histories for item in history)
    total = sum(popularity.values())
    after: dict[int, Counter[int]] = {item: Counter() for item in range(1, num_items + 1)}
    for history in histories:
        for item, following in pairwise(history):
            after[item][following] += 1
    out = []
    for query in queries:
        counts = after[query[-1]]
        weight = sum(counts.values()) + alpha
        out.append(
            [
                (counts[j] + alpha * (popularity[j] / total)) / weight if weight else 0.0
                for j in range(1, num_items + 1)
            ]
        )
    return torch.tensor(out, dtype=torch.float64).float()


@pytest.mark.parametrize("alpha", [0.0, 0.01, 7.0])
def test_equals_the_definition(alpha: float) -> None:
    histories = random_histories(40, 15, 8)
    queries = [[item] for item in range(1, 16)] + random_histories(20, 15, 6, seed=1)
    model = Markov(15, smoothing=alpha)
    model.count(*flat(histories))
    got = last_scores(model, queries, 6)
    assert torch.equal(got, by_definition(histories, queries, 15, alpha))
    if alpha:
        torch.testing.assert_close(got.sum(1), torch.ones(len(queries)))
