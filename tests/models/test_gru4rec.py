"""GRU4Rec against its equations in plain loops and against torch's GRU cell; start, padding."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.gru4rec import GRU4Rec


def build(**options: object) -> GRU4Rec:
    settings = {"hidden_size": 6, "gru_size": 5} | options
    model = GRU4Rec(num_items=12, dropout=0.0, **settings)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the row of padding, too: nothing may read it
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.6)
    return model.double()


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 1, 2, 3, 5])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, 13, (5, 7), generator=g)
    return items * (torch.arange(7) < lengths[:, None]), lengths


def real(items: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(items.shape[1]) < lengths[:, None]


def by_equations(model: GRU4Rec, items: Tensor, lengths: Tensor) -> Tensor:
    """Scores (M, K) at every real position, row by row."""
    scores = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        x = [model.items.weight[i] for i in row[:length]]
        for layer in range(model.gru.num_layers):
            W = getattr(model.gru, f"weight_ih_l{layer}")
            U = getattr(model.gru, f"weight_hh_l{layer}")
            f, out = x[0].new_zeros(model.gru.hidden_size), []
            for x_t in x:
                wr, wz, wn = (W @ x_t).chunk(3)
                ur, uz, un = (U @ f).chunk(3)
                r, z = 1 / (1 + (-wr - ur).exp()), 1 / (1 + (-wz - uz).exp())
                f = (1 - z) * torch.tanh(wn + r * un) + z * f
                out.append(f)
            x = out
        for x_t in x:
            y = model.out.weight @ x_t + model.out.bias
            scores.append(torch.stack([(y * model.items.weight[k]).sum() for k in range(1, 13)]))
    return torch.stack(scores)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_the_equations_with_gradients(num_layers: int) -> None:
    model = build(num_layers=num_layers)
    items, lengths = rows()
    got = model.logits(model(items, lengths)[real(items, lengths)])
    want = by_equations(model, items, lengths)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_is_torchs_cell_step_by_step() -> None:
    model = build()
    cell = nn.GRUCell(6, 5, bias=False).double()
    with torch.no_grad():
        cell.weight_ih.copy_(model.gru.weight_ih_l0)
        cell.weight_hh.copy_(model.gru.weight_hh_l0)
    items, lengths = rows()
    state, states = torch.zeros(5, 5, dtype=torch.float64), []
    for t in range(7):
        state = cell(F.embedding(items[:, t], model.items.weight), state)
        states.append(F.linear(state, model.out.weight, model.out.bias))
    want = torch.stack(states, dim=1)
    torch.testing.assert_close(model(items, lengths), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("changed", [1, 4, 6])
def test_a_later_item_moves_no_earlier_state(changed: int) -> None:
    model = build(num_layers=2)
    assert model.causal
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    other = items.clone()
    other[0, changed] = 12
    lengths = torch.tensor([7])
    moved = (model(items, lengths) - model(other, lengths)).abs().amax(-1)[0]
    assert (moved[:changed] < 1e-12).all()
    assert (moved[changed:] > 1e-5).all()


@pytest.mark.parametrize("extra", [1, 30])
def test_padding_columns_change_no_score(extra: int) -> None:
    model = build(num_layers=2).float()
    assert model.padding_invariant
    items, lengths = rows()
    wide = F.pad(items, (0, extra))
    narrow_scores = model.logits(model(items, lengths)[real(items, lengths)])
    wide_scores = model.logits(model(wide, lengths)[real(wide, lengths)])
    torch.testing.assert_close(narrow_scores, wide_scores, rtol=1e-5, atol=1e-6)


def test_padding_row_is_zero_without_gradient_and_outside_the_scores() -> None:
    model = GRU4Rec(num_items=12)
    items, lengths = rows()
    scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
    assert scores.shape == (5, 12)
    F.cross_entropy(scores, torch.arange(5)).backward()
    assert model.items.weight.grad is not None
    assert not model.items.weight[0].any()
    assert not model.items.weight.grad[0].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_scores_of_some_items_are_those_of_all() -> None:
    model = build()
    items, lengths = rows()
    states = model(items, lengths)[torch.arange(5), lengths - 1]
    some = torch.tensor([[1, 12], [3, 3], [7, 2], [12, 1], [5, 6]])
    torch.testing.assert_close(model.logits(states, some), model.logits(states).gather(1, some - 1))


def test_starts_as_recboles() -> None:
    """Table Xavier normal, the first GRU layer Xavier uniform, the rest as torch draws it."""
    torch.manual_seed(0)
    model = GRU4Rec(num_items=2000, hidden_size=64, gru_size=128, num_layers=2)
    assert not any("bias" in name for name, _ in model.gru.named_parameters())
    table = model.items.weight[1:]
    assert table.std().item() == pytest.approx(math.sqrt(2 / (2001 + 64)), rel=0.02)
    assert (table.abs() > 2.5 * table.std()).any()  # not uniform
    bounds = {
        "gru.weight_ih_l0": math.sqrt(6 / (3 * 128 + 64)),
        "gru.weight_hh_l0": math.sqrt(6 / (3 * 128 + 128)),
        "gru.weight_ih_l1": 128**-0.5,
        "gru.weight_hh_l1": 128**-0.5,
        "out.weight": 128**-0.5,
        "out.bias": 128**-0.5,
    }
    parameters = dict(model.named_parameters())
    assert set(parameters) == {"items.weight", *bounds}
    for name, bound in bounds.items():
        largest = parameters[name].abs().max().item()
        assert 0.95 * bound < largest <= bound, name


def test_dropout_acts_on_the_embeddings_in_training_only() -> None:
    torch.manual_seed(0)
    model = GRU4Rec(num_items=12, dropout=0.5)
    seen = []
    model.gru.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    items, lengths = rows()
    before = model.items(items)
    model(items, lengths)
    dropped = seen[0] == 0
    kept = ~dropped & (before != 0)
    torch.testing.assert_close(seen[0][kept], 2 * before[kept])
    assert dropped[before != 0].float().mean().item() == pytest.approx(0.5, abs=0.05)
    model.eval()
    first = model(items, lengths)
    torch.testing.assert_close(seen[1], before)
    torch.testing.assert_close(first, model(items, lengths))


def test_overfits_a_handful_of_users() -> None:
    torch.manual_seed(0)
    model = GRU4Rec(12, 32, 32, dropout=0.0)
    items, lengths = rows()
    targets = torch.tensor([3, 9, 1, 12, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()
