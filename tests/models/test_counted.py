"""What every counted model keeps to: its states, its checkpoints, chunks, and its configuration."""

import copy
from collections import Counter

import pytest
import torch
from hydra.utils import instantiate

import sigma.models.counted
from sigma.errors import UserError
from sigma.models.counted import Counted
from sigma.models.item_knn import ItemKNN
from sigma.models.markov import Markov
from sigma.models.popularity import Popularity
from sigma.models.vmis_knn import VMISKNN
from tests.models.checks import composed, flat, last_scores, latest, random_histories

K, L = 12, 6
MODELS = {
    "popularity": lambda: Popularity(K),
    "markov": lambda: Markov(K, smoothing=0.5),
    "item_knn": lambda: ItemKNN(K, L, neighbours=4, decay=0.9),
    "vmis_knn": lambda: VMISKNN(K, L, sessions=7, neighbours=3),
}


def counted(name: str, seed: int = 0) -> Counted:
    model = MODELS[name]()
    model.count(*flat(random_histories(30, K, 9, seed)))
    return model


QUERIES = random_histories(20, K, L, seed=5)


def test_popularity_equals_a_plain_count() -> None:
    counts = Counter(item for history in random_histories(30, K, 9) for item in history)
    want = torch.tensor([float(counts[item]) for item in range(1, K + 1)])
    assert torch.equal(last_scores(counted("popularity"), QUERIES, L), want.repeat(20, 1))


@pytest.mark.parametrize("name", MODELS)
def test_a_state_is_the_last_items_up_to_its_place(name: str) -> None:
    model = counted(name)
    items, rows = latest(QUERIES, L)
    want = []
    for history in QUERIES:
        for n in range(1, len(history) + 1):
            seen = history[max(n - model.width, 0) : n]
            want.append([0] * (model.width - len(seen)) + seen)
    assert model(items, rows, torch.arange(len(items))).tolist() == want


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_needs_no_data(name: str) -> None:
    """Not even of the same sizes, in a model that counted other data."""
    model, other = counted(name), counted(name, seed=9)
    want = last_scores(model, QUERIES, L)
    assert want.any()
    assert not torch.equal(last_scores(other, QUERIES, L), want)
    state = torch.nn.ModuleDict({"model": model}).state_dict()
    for fresh in (MODELS[name](), other):
        torch.nn.ModuleDict({"model": fresh}).load_state_dict(state)
        assert torch.equal(last_scores(fresh, QUERIES, L), want)


@pytest.mark.parametrize("name", MODELS)
def test_counting_again_starts_anew_and_users_without_items_count_for_nothing(name: str) -> None:
    again, histories = counted(name, seed=9), random_histories(30, K, 9)
    again.count(*flat([[], *histories[:10], [], [], *histories[10:], []], torch.int64))
    assert torch.equal(last_scores(again, QUERIES, L), last_scores(counted(name), QUERIES, L))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_to_train_and_nothing_that_precision_rounds(name: str) -> None:
    model = counted(name)
    assert not list(model.parameters())
    halved = copy.deepcopy(model).bfloat16()
    want = last_scores(model, QUERIES, L)
    assert want.dtype == torch.float32
    assert torch.equal(last_scores(halved, QUERIES, L), want)


@pytest.mark.parametrize("name", MODELS)
def test_few_cells_at_a_time_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = last_scores(counted(name), QUERIES, L)
    monkeypatch.setattr(sigma.models.counted, "CELLS", 1)
    if name == "item_knn":
        monkeypatch.setattr("sigma.models.item_knn.CELLS", 1)
    assert torch.equal(last_scores(counted(name), QUERIES, L), want)


@pytest.mark.parametrize("name", MODELS)
def test_scoring_before_counting_says_what_to_do(name: str) -> None:
    with pytest.raises(UserError, match="has counted no interactions"):
        last_scores(MODELS[name](), QUERIES, L)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_twenty_thousand_items(name: str) -> None:
    """A dense table of pairs of items would take 3 GB; nothing here comes near it."""
    num_items, width = 20_000, 50
    g = torch.Generator().manual_seed(0)
    items = torch.randint(1, num_items + 1, (60_000,), generator=g)
    offsets = torch.arange(0, 60_001, 12)
    config = composed(name, f"dataset.max_length={width}")
    model = instantiate(config.model, num_items=num_items)
    model.count(items, offsets)
    assert sum(b.numel() for b in model.buffers()) < 4_000_000
    queries = [items[i : i + 11].tolist() for i in offsets[:64].tolist()]
    assert last_scores(model, queries, width).isfinite().all()
