"""Popularity against a plain count."""

from collections import Counter

import torch

from sigma.models.popularity import Popularity
from tests.models.checks import flat, last_scores, random_histories


def test_equals_a_plain_count() -> None:
    histories = random_histories(40, 15, 8)
    model = Popularity(15)
    model.count(*flat(histories))
    counts = Counter(item for history in histories for item in history)
    want = torch.tensor([float(counts[item]) for item in range(1, 16)])
    got = last_scores(model, random_histories(10, 15, 6, seed=1), 6)
    assert torch.equal(got, want.repeat(10, 1))
