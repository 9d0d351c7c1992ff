"""LinRec against softmax-free attention in plain loops, all pairs of positions; padding, masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.linrec import LinRec


def build(seed: int = 0, **options: object) -> LinRec:
    settings = {"max_length": 7, "hidden_size": 6, "num_heads": 2, "inner_size": 5, "dropout": 0.0}
    torch.manual_seed(seed)
    model = LinRec(num_items=12, **(settings | options)).double()  # type: ignore[arg-type]
    # Far from the start, where biases are 0, norms 1 and every ELU nearly linear.
    for p in model.parameters():
        nn.init.normal_(p, std=0.7)
    with torch.no_grad():
        model.items.weight[0] = 0
    return model


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 1, 2, 3, 5])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, 13, (5, 7), generator=g)
    return items * (torch.arange(7) < lengths[:, None]), lengths


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def unit(x: Tensor) -> Tensor:
    x = torch.where(x > 0, x, x.exp() - 1)
    return x / x.pow(2).sum().sqrt()


def by_equations(model: LinRec, items: Tensor, lengths: Tensor, heads: int) -> Tensor:
    """The authors' model sees the whole padded row, the masked one real items alone."""
    finals = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        seen = length if model.padding_invariant else len(row)
        x = [
            norm(model.items.weight[i] + model.positions.table.weight[t], model.norm)
            for t, i in enumerate(row[:seen])
        ]
        for a, f in zip(model.attention, model.feed_forward, strict=True):
            q, k, v = ([linear(h, m).chunk(heads) for h in x] for m in (a.query, a.key, a.value))
            y = []
            for t in range(seen):
                mixed = [
                    sum(unit(q[t][h]) @ unit(k[s][h]) * v[s][h] for s in range(seen))
                    / math.sqrt(len(v[0][h]))
                    for h in range(heads)
                ]
                y.append(norm(x[t] + linear(torch.cat(mixed), a.out), a.norm))
            x = []
            for h in y:
                wide = linear(h, f.widen)
                wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
                x.append(norm(h + linear(wide, f.narrow), f.norm))
        finals.append(x[length - 1])
    return torch.stack(finals)


def last(model: LinRec, items: Tensor, lengths: Tensor) -> Tensor:
    return model(items, lengths)[torch.arange(len(items)), lengths - 1]


@pytest.mark.parametrize(
    "options",
    [{}, {"mask_padding": True}, {"num_heads": 1}, {"num_heads": 3, "num_layers": 1}],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    model = build(**options)
    items, lengths = rows()
    got = last(model, items, lengths)
    want = by_equations(model, items, lengths, options.get("num_heads", 2))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        if name == "items.weight":  # the table's padding row has no gradient by declaration
            assert not a[0].any()
            a, b = a[1:], b[1:]
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_every_position_reads_every_other() -> None:
    model = build()
    items, lengths = rows()
    changed = items.clone()
    changed[0, 6] = items[0, 6] % 12 + 1
    before, after = model(items, lengths), model(changed, lengths)
    assert ((before - after).abs().amax(-1)[0] > 1e-6).all()
    torch.testing.assert_close(before[1:], after[1:])
    assert not model.causal


def test_padding_moves_scores_unless_masked() -> None:
    items, lengths = rows()
    for masked in (False, True):
        model = build(mask_padding=masked, max_length=40)
        narrow = model.logits(last(model, items, lengths))
        wide = model.logits(last(model, F.pad(items, (0, 33)), lengths))
        moved = (narrow - wide).abs().amax(1)
        assert model.padding_invariant is masked
        assert (moved < 1e-10).all() if masked else (moved > 1e-3).all()


def test_full_rows_know_no_mask() -> None:
    items, lengths = rows()
    plain, masked = build(), build(mask_padding=True)
    torch.testing.assert_close(plain(items[:1], lengths[:1]), masked(items[:1], lengths[:1]))
    assert not torch.allclose(plain(items, lengths)[1, 0], masked(items, lengths)[1, 0])


def test_a_zero_vector_is_no_division_by_zero() -> None:
    model = build()
    for attention in model.attention:
        nn.init.zeros_(attention.query.weight)
        nn.init.zeros_(attention.query.bias)
    hidden = model(*rows())
    hidden.sin().sum().backward()
    assert hidden.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_acts_in_training_alone() -> None:
    model = build(dropout=0.5)
    items, lengths = rows()
    assert not torch.allclose(model(items, lengths), model(items, lengths))
    model.eval()
    torch.testing.assert_close(model(items, lengths), model(items, lengths))


def test_starts_as_recbole() -> None:
    torch.manual_seed(0)
    model = LinRec(num_items=300, max_length=50)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (p == 1).all()
        elif name.endswith("bias"):
            assert not p.any()
        else:
            assert 0.018 < p.std() < 0.022, name
    assert not model.items.weight[0].any()


def test_scores_all_items_or_those_asked_for() -> None:
    model = build()
    states = last(model, *rows())
    scores = model.logits(states)
    torch.testing.assert_close(scores, states @ model.items.weight[1:].T)
    asked = torch.tensor([[1, 12], [3, 3], [2, 5], [7, 1], [12, 11]])
    torch.testing.assert_close(model.logits(states, asked), scores.gather(1, asked - 1))


def test_heads_must_divide() -> None:
    with pytest.raises(UserError, match=r"hidden_size=6 must be a multiple of model.num_heads=4"):
        build(num_heads=4)


@pytest.mark.parametrize("masked", [False, True])
def test_overfits_a_handful_of_users(masked: bool) -> None:
    torch.manual_seed(0)
    model = LinRec(12, 7, hidden_size=32, inner_size=32, dropout=0.0, mask_padding=masked)
    items, lengths = rows()
    targets = torch.tensor([3, 9, 1, 12, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        scores = model.logits(last(model, items, lengths))
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()
