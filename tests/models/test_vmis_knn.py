"""VMIS-kNN against sets, loops and fractions."""

import math
from fractions import Fraction

import pytest
import torch

from sigma.models.vmis_knn import VMISKNN
from tests.models.checks import flat, last_scores, random_histories

K, L = 15, 12


def neighbours_by_definition(
    sessions: list[set[int]], history: list[int], m: int, k: int
) -> list[tuple[int, Fraction]]:
    """Session and similarity of each neighbour."""
    n = len(history)
    place = {item: p for p, item in enumerate(history, start=1)}
    candidates = [s for s in range(len(sessions)) if sessions[s] & set(history)][-m:]
    similar = [
        (Fraction(sum(place[i] for i in sessions[s] if i in place), n), s)
        for s in candidates
        if sessions[s] - set(history)
    ]
    return [(s, r) for r, s in sorted(similar, reverse=True)[:k]]


def by_definition(
    histories: list[list[int]],
    queries: list[list[int]],
    sessions: int = 500,
    neighbours: int = 100,
    remind: bool = False,
) -> torch.Tensor:
    pool = [set(history[-(L - 1) :]) for history in histories]
    out = []
    for query in queries:
        history = query[-L:]
        evidence = dict.fromkeys(range(1, K + 1), Fraction(0))
        for s, r in neighbours_by_definition(pool, history, sessions, neighbours):
            x = min(1 + history[::-1].index(i) for i in pool[s] if i in history)
            for i in pool[s]:
                evidence[i] += max(Fraction(0), 1 - Fraction(x, 10)) * r
        row = []
        for i in range(1, K + 1):
            holders = sum(i in s for s in pool)
            hidden = i == history[-1] if remind else i in history
            idf = math.log(len(pool) / holders) if holders else 0.0
            row.append(0.0 if hidden else float(evidence[i]) * idf)
        out.append(row)
    return torch.tensor(out, dtype=torch.float64).float()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neighbours": 1},
        {"neighbours": 4},
        {"sessions": 6},
        {"sessions": 6, "neighbours": 3},
        {"sessions": 1},
        {"remind": True, "neighbours": 5},
    ],
    ids=str,
)
def test_equals_the_definition(options: dict) -> None:
    histories = random_histories(30, K, 2 * L)
    # A user's own session is no neighbour: neither at validation, whose history is all of training,
    # nor at test, one item later.
    later = [[*h, i % K + 1] for i, h in enumerate(histories)]
    queries = random_histories(40, K, 2 * L, seed=1) + histories + later
    model = VMISKNN(K, L, **options)
    model.count(*flat(histories))
    got = last_scores(model, queries, 2 * L)
    assert torch.equal(got, by_definition(histories, queries, **options))
