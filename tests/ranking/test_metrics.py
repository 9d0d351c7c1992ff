"""Ranking metrics: by hand, against torchmetrics, under ties, NaN, groups and two processes."""

import math
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from sigma.ranking.metrics import ALL, MeanLoss, RankingMetrics, target_ranks
from sigma.ranking.scores import Ranking


def add(metrics: RankingMetrics, greater: Tensor, ties: Tensor, lengths: Tensor) -> None:
    ranking = Ranking(greater, ties, greater.new_empty(len(greater), 0))
    metrics.update(dict.fromkeys(metrics.rankings, ranking), lengths)


def measured(scores: Tensor, targets: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    metrics = RankingMetrics(ks, rankings=[ALL])
    add(metrics, *target_ranks(scores, targets), torch.ones_like(targets))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_hand_computed() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 2.0, 1.0]])
    targets = torch.tensor([1, 3, 4])  # ranks 1, 2 and 4
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    want = {"hr@1": 1, "hr@3": 2, "hr@4": 3, "ndcg@1": 1, "ndcg@3": 1 + second}
    want |= {"ndcg@4": 1 + second + fourth, "mrr@1": 1, "mrr@3": 1 + 1 / 2, "mrr@4": 1 + 3 / 4}
    got = measured(scores, targets, (1, 3, 4))
    assert got == pytest.approx({name: value / 3 for name, value in want.items()})


def test_equals_torchmetrics_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 60, generator=generator, dtype=torch.float64)
    targets = torch.randint(1, 61, (200,), generator=generator)
    relevant = torch.zeros(200, 60, dtype=torch.long)
    relevant[torch.arange(200), targets - 1] = 1
    index = torch.arange(200).repeat_interleave(60)
    got = measured(scores, targets)
    peers = {"hr": RetrievalHitRate, "ndcg": RetrievalNormalizedDCG, "mrr": RetrievalMRR}
    for k in (1, 5, 10):
        for name, peer in peers.items():
            want = peer(top_k=k)(scores.flatten(), relevant.flatten(), indexes=index)
            assert got[f"{name}@{k}"] == pytest.approx(float(want), abs=1e-6)


@pytest.mark.parametrize("num_items", [4, 10, 37])
def test_constant_scorer_gets_what_chance_gives(num_items: int) -> None:
    targets = torch.arange(1, num_items + 1)
    got = measured(torch.zeros(num_items, num_items), targets)
    for k in (1, 5, 10):
        top = range(1, min(k, num_items) + 1)
        assert got[f"hr@{k}"] == pytest.approx(len(top) / num_items)
        assert got[f"mrr@{k}"] == pytest.approx(sum(1 / r for r in top) / num_items)
        expected = sum(1 / math.log2(r + 1) for r in top) / num_items
        assert got[f"ndcg@{k}"] == pytest.approx(expected)


def test_ties_are_the_mean_over_all_orders() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    got = measured(scores, torch.tensor([3]), (1, 2, 3))  # rank 2, 3 or 4, each as likely
    assert [got[f"hr@{k}"] for k in (1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert got["mrr@3"] == pytest.approx((1 / 2 + 1 / 3) / 3)


def test_nan_never_helps_and_items_left_out_are_never_above() -> None:
    nan, inf = math.nan, math.inf
    scores = torch.tensor([[nan, 1.0, 2.0, 3.0], [1.0, nan, 0.0, 0.0], [0.5, -inf, 0.7, -inf]])
    greater, ties = target_ranks(scores, torch.tensor([1, 1, 1]))
    assert greater.tolist() == [3, 1, 1]
    assert ties.tolist() == [0, 0, 0]
    assert measured(torch.full((3, 20), nan), torch.tensor([1, 2, 3]))["hr@10"] == 0


def test_groups_partition_by_history_length() -> None:
    groups = {"short": [0, 5], "medium": [5, 20], "long": [20, None], "none": [90, 91]}
    metrics = RankingMetrics([1], groups, rankings=[ALL])
    lengths = torch.tensor([1, 4, 5, 19, 20, 21])
    add(metrics, torch.tensor([0, 1, 0, 0, 0, 1]), torch.zeros(6, dtype=torch.long), lengths)
    got = {name: float(value) for name, value in metrics.compute().items() if "hr" in name}
    groups = {"short/hr@1": 0.5, "medium/hr@1": 1.0, "long/hr@1": 0.5}
    assert got == {"hr@1": pytest.approx(4 / 6), **groups}


@pytest.mark.parametrize("ks", [(), (0,), (-1, 5)])
def test_refuses_impossible_cut_offs(ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ks"):
        RankingMetrics(ks=ks)


def _one_process(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(3)
    greater = torch.randint(0, 30, (25,), generator=generator)
    ties = torch.randint(0, 3, (25,), generator=generator)
    lengths = torch.randint(1, 40, (25,), generator=generator)
    metrics = RankingMetrics((1, 10), {"short": [0, 5], "long": [20, None]})
    mine = slice(rank, None, world)
    add(metrics, greater[mine], ties[mine], lengths[mine])
    both = {name: float(value) for name, value in metrics.compute().items()}
    alone = RankingMetrics((1, 10), {"short": [0, 5], "long": [20, None]})
    alone.distributed_available_fn = lambda: False
    add(alone, greater, ties, lengths)
    assert both == {name: float(value) for name, value in alone.compute().items()}
    Path(folder, str(rank)).write_text(repr(both))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_one_process_metrics(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (2, port, str(tmp_path))
    start_processes(_one_process, arguments, nprocs=2, start_method="fork")  # all is loaded
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def test_half_precision_of_the_task_leaves_the_sums_alone() -> None:
    """``trainer.precision=bf16-true`` casts every module, metrics among them."""
    generator = torch.Generator().manual_seed(0)
    greater = torch.randint(0, 40, (5000,), generator=generator)
    both = [RankingMetrics(), torch.nn.ModuleList([RankingMetrics()]).to(torch.bfloat16)[0]]
    for metrics in both:
        for part in greater.split(100):
            add(metrics, part, torch.zeros_like(part), torch.ones_like(part))
    exact, cast = (metrics.compute() for metrics in both)
    assert exact == cast


def test_the_mean_loss_is_over_targets_and_outlives_a_checkpoint() -> None:
    one = MeanLoss()
    for loss, targets in ((9.0, 2048), (3.0, 1), (5.0, 341)):
        one.update(torch.tensor(loss), targets)
    want = (9 * 2048 + 3 + 5 * 341) / (2048 + 1 + 341)
    assert one.compute().item() == pytest.approx(want, rel=1e-6)
    other = MeanLoss()
    other.load_state_dict(one.state_dict())
    assert set(one.state_dict()) == {"mean_value", "weight"}  # as checkpoints have had them
    assert torch.equal(other.compute(), one.compute())
