"""LinRec against softmax-free attention in plain loops, all pairs of positions; padding, masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.linrec import LinRec
from tests.models.checks import (
    K,
    assert_same_scores,
    assert_starts_as_recboles,
    every_state,
    last_states,
    rows,
    shake,
)
from tests.models.slow import embedded, feed_forward, gelu, linear, norm


def build(**options: object) -> LinRec:
    settings = {"max_length": 7, "hidden_size": 6, "num_heads": 2, "inner_size": 5, "dropout": 0.0}
    torch.manual_seed(0)
    model = LinRec(num_items=K, **(settings | options))  # type: ignore[arg-type]
    shake(model, 0.7)  # at the start every ELU is nearly linear
    return model.double()


def unit(x: Tensor) -> Tensor:
    x = torch.where(x > 0, x, x.exp() - 1)
    return x / x.pow(2).sum().sqrt()


def by_equations(model: LinRec, items: Tensor, lengths: Tensor, options: dict) -> Tensor:
    """States at every real position, row by row.

    The authors' model sees the whole padded row, the masked one real items alone.
    """
    out = []
    heads = options.get("num_heads", 2)
    for row, length in zip(items, lengths.tolist(), strict=True):
        seen = length if options.get("mask_padding") else len(row)
        x = [
            norm(embedded(model.items, i) + model.positions.table.weight[t], model.norm)
            for t, i in enumerate(row[:seen])
        ]
        for layer in model.layers:
            a, f = layer.attention, layer.feed_forward
            q, k, v = ([linear(h, m).chunk(heads) for h in x] for m in (a.query, a.key, a.value))
            y = []
            for t in range(seen):
                mixed = [
                    sum(unit(q[t][h]) @ unit(k[s][h]) * v[s][h] for s in range(seen))
                    / math.sqrt(len(v[0][h]))
                    for h in range(heads)
                ]
                y.append(norm(x[t] + linear(torch.cat(mixed), a.out), a.norm))
            x = [feed_forward(h, f, gelu) for h in y]
        out.extend(x[:length])
    return torch.stack(out)


@pytest.mark.parametrize(
    "options",
    [{}, {"mask_padding": True}, {"num_heads": 1}, {"num_heads": 3, "num_layers": 1}],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    model = build(**options)
    items, lengths = rows()
    want = by_equations(model, items, lengths, options)
    assert_same_scores(model, items, lengths, want)


def test_every_position_reads_every_other() -> None:
    model = build()
    items, lengths = rows()
    changed = items.clone()
    changed[0, 6] = items[0, 6] % 12 + 1
    before, after = every_state(model, items, lengths), every_state(model, changed, lengths)
    assert ((before - after).abs().amax(-1)[:7] > 1e-6).all()
    torch.testing.assert_close(before[7:], after[7:])
    assert not model.causal


def test_padding_moves_states_unless_masked() -> None:
    items, lengths = rows()
    for masked in (False, True):
        model = build(mask_padding=masked, max_length=40)
        narrow = last_states(model, items, lengths)
        wide = last_states(model, F.pad(items, (0, 33)), lengths)
        moved = (narrow - wide).abs().amax(1)
        assert (moved < 1e-10).all() if masked else (moved > 1e-3).all()


def test_full_rows_know_no_mask() -> None:
    items, lengths = rows()
    plain, masked = build(), build(mask_padding=True)
    ours, theirs = every_state(plain, items, lengths), every_state(masked, items, lengths)
    torch.testing.assert_close(ours[:7], theirs[:7])
    assert not torch.allclose(ours[7], theirs[7])


def test_a_zero_vector_is_no_division_by_zero() -> None:
    model = build()
    for layer in model.layers:
        nn.init.zeros_(layer.attention.query.weight)
        nn.init.zeros_(layer.attention.query.bias)
    states = every_state(model, *rows())
    states.sin().sum().backward()
    assert states.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_starts_as_recbole() -> None:
    torch.manual_seed(0)
    model = LinRec(num_items=300, max_length=50)
    assert_starts_as_recboles(model)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="num_heads=4 must divide hidden_size=6"):
        build(num_heads=4)


def test_the_embeddings_are_dropped_out_too() -> None:
    """The layers' own dropout aside, training still draws."""
    model = build(dropout=0.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name != "dropout":
            module.p = 0.0
    still = every_state(model.eval(), *rows())
    assert not torch.allclose(every_state(model.train(), *rows()), still)
    model.dropout.p = 0.0
    torch.testing.assert_close(every_state(model, *rows()), still)
