"""The popularity ranking, against scoring every item by its count and ranking by hand."""

from pathlib import Path

import pytest
import torch

from sigma.datamodules.sets.custom import Custom
from sigma.ranking import popularity
from sigma.ranking.metrics import RankingMetrics, target_ranks
from sigma.ranking.popularity import popularity_metrics
from tests.runs.front_door import write_sequences

GROUPS = {"short": (0, 10), "long": (10, None)}


@pytest.mark.parametrize("mask_history", [False, True])
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_ranking_by_hand(
    split: str, mask_history: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Custom(
        path=str(write_sequences(tmp_path / "tiny.txt")),
        root=str(tmp_path / "root"),
        mask_history=mask_history,
    )
    data.setup()
    sequences, positions = data.sequences, data.split
    assert sequences is not None
    assert positions is not None
    counts = torch.zeros(data.num_items)
    for user, end in enumerate(positions.train_end):
        for item in sequences.items[sequences.offsets[user] : end]:
            counts[item - 1] += 1
    batch = data.flat.batch(torch.from_numpy(getattr(positions, split)), mask_history=mask_history)
    scores = counts.repeat(len(batch.targets), 1)
    scores[batch.seen_rows, batch.seen_items - 1] = float("-inf")
    expected = RankingMetrics([10], GROUPS)
    expected.update(*target_ranks(scores, batch.targets), batch.history_lengths)
    wanted = {name: float(value) for name, value in expected.compute().items()}
    monkeypatch.setattr(popularity, "ROWS", 7)  # several pieces
    found = popularity_metrics(data, split, [10], GROUPS)
    assert found == pytest.approx(wanted)
    assert {"hr@10", "short/ndcg@10", "long/mrr@10"} <= set(found)
