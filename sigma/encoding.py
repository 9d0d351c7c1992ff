"""Encode a batch without spending time on padding.

Rows are sorted by length and encoded in a few groups, each cut to its longest row; only the states
that predict something are kept. The batch itself, its loss and its gradient stay what they were
(the mean over the same rows), so unlike bucketed sampling this changes no statistics. Valid only
for models whose scores padding does not change, or which cut rows of like length themselves.
"""

import torch
from torch import Tensor, nn

from sigma.datamodules.batches import Batch

# A group spans lengths up to this factor, so at most a third of its columns is padding on average.
GROWTH = 1.5
MIN_ROWS = 64  # below this a group costs more in calls than its padding would


def length_groups(sorted_lengths: list[int]) -> list[tuple[int, int]]:
    """``(first, last + 1)`` of each group in ascending lengths."""
    groups = []
    first = 0
    for i, length in enumerate(sorted_lengths):
        if length > max(2, sorted_lengths[first] * GROWTH) and i - first >= MIN_ROWS:
            groups.append((first, i))
            first = i
    groups.append((first, len(sorted_lengths)))
    return groups


def target_states(model: nn.Module, batch: Batch, by_length: bool) -> Tensor:
    """States (M, D) at the batch's targets, in their order.

    Args:
        model: items (B, L), lengths (B,) -> hidden (B, L, D). One with ``reads_one`` also takes
            columns (B,) and returns the states there alone, (B, 1, D), for less work.
        batch: see ``Batch``.
        by_length: encode in length groups, cut to their longest row unless a model cuts them itself
            (``cuts_columns``: it reads past a row's end, but not everywhere).
    """
    # Rows without a target are left to a model's extra loss; they stand behind the others.
    kept = min(len(batch.items), len(batch.targets))
    items, lengths = batch.items[:kept], batch.lengths[:kept]
    own_rows = torch.arange(kept, device=items.device)
    columns = batch.target_columns
    one_each = getattr(model, "reads_one", False) and torch.equal(batch.target_rows, own_rows)
    if not by_length:
        if one_each:
            return model(items, lengths, columns).squeeze(1)
        return model(items, lengths)[batch.target_rows, columns]
    lengths, order = lengths.sort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = own_rows
    place = rank[batch.target_rows]
    listed = lengths.tolist()
    states, taken = [], []
    for first, last in length_groups(listed):
        rows = order[first:last]
        group = items[rows]
        if getattr(model, "padding_invariant", False):
            group = group[:, : listed[last - 1]]
        if one_each:
            chosen = rows
            states.append(model(group, lengths[first:last], columns[rows]).squeeze(1))
        else:
            hidden = model(group, lengths[first:last])
            chosen = ((place >= first) & (place < last)).nonzero().squeeze(1)
            states.append(hidden[place[chosen] - first, columns[chosen]])
        taken.append(chosen)
    index = torch.cat(taken)
    inverse = torch.empty_like(index)
    inverse[index] = torch.arange(len(index), device=index.device)
    return torch.cat(states)[inverse]
