"""eSASRec against a computation on rows padded at their start, of PyTorch's own modules."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sigma.losses import SampledSoftmax
from sigma.models.esasrec import ESASRec
from sigma.ops import rows_of
from tests.models.checks import K, assert_same, every_state, packed, padded, tiny


def left_padded(items: Tensor, lengths: Tensor) -> Tensor:
    """(B, L), padding before the items."""
    width = items.shape[1]
    columns = torch.arange(width) - (width - lengths[:, None])
    return items.gather(1, columns.clamp(min=0)) * (columns >= 0)


def reference(model: ESASRec, items: Tensor, heads: int) -> Tensor:
    """Scores (B, L, K) of left-padded items (B, L)."""
    width, size = items.shape[1], model.items.embedding_dim
    x = F.embedding(items, model.items.weight)
    x = x + model.positions.table(torch.arange(width - 1, -1, -1))
    hidden = torch.ones(width, width, dtype=torch.bool).triu(1) | (items == 0)[:, None]
    hidden &= ~torch.eye(width, dtype=torch.bool)
    module = nn.MultiheadAttention(size, heads, batch_first=True, dtype=x.dtype)
    for layer in model.layers:
        a, f = layer.attention, layer.feed_forward
        maps = (a.query, a.key, a.value)
        weights = {
            "in_proj_weight": torch.cat([m.weight for m in maps]),
            "in_proj_bias": torch.cat([m.bias for m in maps]),
            "out_proj.weight": a.out.weight,
            "out_proj.bias": a.out.bias,
        }
        normed = F.layer_norm(x, (size,), a.norm.weight, a.norm.bias)
        mask = {"attn_mask": hidden.repeat_interleave(heads, 0)}
        mixed, _ = functional_call(module, weights, (normed, normed, normed), mask)
        x = x + F.linear(x, a.gate.weight, a.gate.bias).sigmoid() * mixed
        normed = F.layer_norm(x, (size,), f.norm.weight, f.norm.bias)
        bent = normed @ f.bend.weight.T
        wide = bent / (1 + (-bent).exp()) * (normed @ f.widen.weight.T)
        gate = 1 / (1 + (-F.linear(x, f.gate.weight, f.gate.bias)).exp())
        x = x + gate * (wide @ f.narrow.weight.T)
    return x @ model.items.weight[1:].T


@pytest.mark.parametrize(("num_layers", "heads"), [(1, 1), (3, 2)])
def test_equals_the_padded_computation_with_gradients(num_layers: int, heads: int) -> None:
    model = tiny(ESASRec, num_layers=num_layers, num_heads=heads)
    items, lengths = padded((7, 1, 2, 6), 7)
    row = torch.arange(7) < lengths[:, None]
    left = left_padded(items, lengths)
    want = reference(model, left, heads)[left > 0]
    assert row.sum() == len(want)
    assert_same(model, model.logits(every_state(model, *packed(items, lengths))), want)


def test_positions_count_from_the_last_item_and_stay_in_the_table() -> None:
    positions = tiny(ESASRec).positions
    rows = rows_of(torch.tensor([3, 1, 2]), 7)
    assert positions.index(rows, 20).tolist()[:6] == [2, 1, 0, 0, 1, 0]
    assert 0 <= positions.index(rows, 20).min() <= positions.index(rows, 20).max() < 7


def test_starts_xavier_with_one_map_for_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    model = ESASRec(num_items=900, max_length=50, hidden_size=128, inner_size=512)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all()
        elif p.dim() == 2:
            joint = any(part in name for part in ("query", "key", "value"))
            fans = 4 * 128 if joint else sum(p.shape)
            torch.testing.assert_close(p.std().item(), math.sqrt(2 / fans), rtol=0.03, atol=0)
    assert not model.items.weight[0].any()


def test_training_drops_out_items_by_one_draw_a_step_where_read_and_where_scored() -> None:
    torch.manual_seed(0)
    model = ESASRec(num_items=K, max_length=7, hidden_size=64, dropout=0.5).train()
    read: list[Tensor] = []
    model.positions.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    items, rows = torch.tensor([3, 4, 3]), rows_of(torch.tensor([3]), 7)
    states = model(items, rows, torch.arange(3))
    table, weight = model.items.weight[1:], model.logits.weight
    zeros = weight == 0
    assert 0.4 < zeros.float().mean() < 0.6
    torch.testing.assert_close(weight, torch.where(zeros, 0, 2 * table), rtol=1e-3, atol=0)
    assert torch.equal(read[0], weight[items - 1])
    loss = SampledSoftmax(torch.ones(K), 4, correction=False)
    loss(states, torch.tensor([4, 5, 6]), model.logits).backward()
    assert model.items.weight.grad is not None
    assert not model.items.weight.grad[1:][zeros].any()  # a place that is left out learns nothing
    model(items, rows, torch.arange(3))
    assert not torch.equal(model.logits.weight == 0, zeros)
    assert torch.equal(model.eval().logits.weight, table)
