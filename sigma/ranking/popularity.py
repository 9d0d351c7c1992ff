"""The ranking every model must beat: all items by how often they were bought in training."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sigma.datamodules.base import SequenceDataModule
from sigma.ranking.metrics import RankingMetrics

ROWS = 4096  # test samples whose histories are held at once


def popularity_metrics(
    data: SequenceDataModule,
    split: str = "test",
    ks: Sequence[int] = (10,),
    groups: Mapping[str, Sequence[int | None]] | None = None,
) -> dict[str, float]:
    """Metrics of the popularity ranking, with the tie rule and names of ``RankingMetrics``.

    Counts every interaction training may see, the first of each user among them.

    Args:
        data: after ``setup()``.
        split: ``val`` or ``test``.
        ks: cut-offs.
        groups: name -> [lower, upper) of the history length.
    """
    assert data.sequences is not None
    assert data.split is not None
    items, offsets = data.sequences.items, data.sequences.offsets
    counts = data.item_counts().numpy()
    positions = {"val": data.split.val, "test": data.split.test}[split]
    users = np.searchsorted(offsets, positions, side="right") - 1
    own = counts[items[positions] - 1]
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, own, side="left")
    greater = len(counts) - np.searchsorted(ordered, own, side="right")
    ties = len(counts) - greater - below - 1
    if data.mask_history:
        for first in range(0, len(positions), ROWS):
            chunk = slice(first, first + ROWS)
            batch = data.flat.batch(torch.from_numpy(positions[chunk]), mask_history=True)
            # One number a pair: each seen item counts once.
            pairs = (batch.seen_rows * (len(counts) + 1) + batch.seen_items).unique().cpu().numpy()
            rows, seen = np.divmod(pairs, len(counts) + 1)
            seen, mine = counts[seen - 1], own[chunk]
            greater[chunk] -= np.bincount(rows, seen > mine[rows], len(mine)).astype(np.int64)
            ties[chunk] -= np.bincount(rows, seen == mine[rows], len(mine)).astype(np.int64)
    metrics = RankingMetrics(ks, groups, alone=True)
    metrics.update(*(torch.from_numpy(x) for x in (greater, ties, positions - offsets[users])))
    return {name: float(value) for name, value in metrics.compute().items()}
