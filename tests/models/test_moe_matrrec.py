"""MoEMaTrRec against its equations in plain loops and torch's own attention; what the leak does."""

import functools
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.datamodules.objectives import AllPositions
from sigma.errors import UserError
from sigma.models.mamba import Mamba
from sigma.models.moe_matrrec import MoEMaTrRec
from tests.models.test_recmamba import composed, parameters_beside_the_table, real, rows
from tests.models.test_sigma import linear, mamba, norm

LEAK = pytest.mark.parametrize("leak", [False, True], ids=["honest", "leak"])


def build(seed: int = 0, **options: object) -> MoEMaTrRec:
    torch.manual_seed(seed)
    settings = {"hidden_size": 6, "max_length": 40, "dropout": 0.0} | options
    block = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)
    model = MoEMaTrRec(num_items=12, mamba=block, **settings)  # type: ignore[arg-type]
    with torch.no_grad():  # away from the start's zeros, so that every parameter matters
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.double()


# --- the equations; honest: one row of real items at a time; leak: one padded row at a time ---


def attention(xs: list[Tensor], model: MoEMaTrRec, heads: int, causal: bool) -> list[Tensor]:
    p = model.attention
    qs, ks, vs = ([linear(x, f) for x in xs] for f in (p.query, p.key, p.value))
    d = len(xs[0]) // heads
    out = []
    for t in range(len(xs)):
        seen = range(t + 1) if causal else range(len(xs))
        mixed = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            weights = torch.stack([qs[t][part] @ ks[s][part] / math.sqrt(d) for s in seen]).exp()
            weights = weights / weights.sum()
            mixed.append(sum(w * vs[s][part] for w, s in zip(weights, seen, strict=True)))
        out.append(norm(linear(torch.cat(mixed), p.out) + xs[t], p.norm))
    return out


def by_equations(model: MoEMaTrRec, items: Tensor, lengths: Tensor, heads: int) -> Tensor:
    out = []
    table, places = model.items.weight, model.positions.table.weight
    for row, length in zip(items, lengths.tolist(), strict=True):
        kept = row.tolist() if model.leak else row.tolist()[:length]
        zero = torch.zeros_like(places[0])
        xs = [
            (math.sqrt(table.shape[1]) * table[item] if item else zero) + places[t]
            for t, item in enumerate(kept)
        ]
        attended = attention(xs, model, heads, causal=not model.leak)
        scanned = mamba(xs, model.mamba)
        for t in range(length):
            seen = xs if model.leak else xs[: t + 1]
            g = 1 / (1 + torch.exp(-linear(sum(seen) / len(seen), model.gate)))
            c = g * scanned[t] + (1 - g) * attended[t]
            wide = linear(c, model.feed_forward.widen).clamp(min=0)
            out.append(norm(linear(wide, model.feed_forward.narrow) + c, model.feed_forward.norm))
    return torch.stack(out)


@LEAK
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_equations_with_gradients(leak: bool, heads: int) -> None:
    model = build(leak=leak, num_heads=heads)
    items, lengths = rows()
    got = real(model(items, lengths), lengths)
    want = by_equations(model, items, lengths, heads)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


@LEAK
def test_attention_equals_torchs_own(leak: bool) -> None:
    model = build(leak=leak, num_heads=2)
    p = model.attention
    own = nn.MultiheadAttention(6, 2, batch_first=True).double()
    maps = [p.query, p.key, p.value]
    with torch.no_grad():
        own.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        own.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
        own.out_proj.load_state_dict(p.out.state_dict())
        model.gate.weight.zero_()
        model.gate.bias.fill_(-1e3)  # g = 0: attention alone
    items, lengths = rows()
    x = 6**0.5 * model.items(items) + model.positions.table.weight[:7]
    later = None if leak else torch.ones(7, 7, dtype=torch.bool).triu(1)
    c = p.norm(own(x, x, x, attn_mask=later)[0] + x)
    hidden = model.feed_forward.norm(
        model.feed_forward.narrow(model.feed_forward.widen(c).relu()) + c
    )
    torch.testing.assert_close(real(model(items, lengths), lengths), real(hidden, lengths))


def states_before_and_after(model: MoEMaTrRec) -> tuple[Tensor, Tensor]:
    """States of row 0, before and after another item comes to its column 4."""
    items, lengths = rows()
    changed = items.clone()
    changed[0, 4] = items[0, 4] % 12 + 1
    return model(items, lengths)[0], model(changed, lengths)[0]


def test_honest_model_is_causal() -> None:
    model = build()
    before, after = states_before_and_after(model)
    assert model.causal
    torch.testing.assert_close(before[:4], after[:4], rtol=1e-12, atol=1e-12)
    assert ((before - after)[4:].abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("way", ["attention", "gate"])
def test_leaking_model_sees_the_next_item_both_ways(way: str) -> None:
    model = build(leak=True)
    with torch.no_grad():  # shut the other way
        (model.gate if way == "attention" else model.attention.out).weight.zero_()
    before, after = states_before_and_after(model)
    assert not model.causal
    assert ((before - after)[:4].abs().amax(1) > 1e-6).all()


def test_padding_columns_move_the_leaking_models_states_only() -> None:
    items, lengths = rows()
    model = build().float()
    assert model.padding_invariant
    narrow, wide = model(items, lengths), model(F.pad(items, (0, 9)), lengths)
    torch.testing.assert_close(real(narrow, lengths), real(wide, lengths), rtol=1e-5, atol=1e-6)
    leaking = build(leak=True)
    assert not leaking.padding_invariant
    narrow, wide = leaking(items, lengths), leaking(F.pad(items, (0, 9)), lengths)
    assert ((real(narrow, lengths) - real(wide, lengths)).abs().amax(1) > 1e-6).all()


def test_full_rows_read_out_the_same_state_with_and_without_the_leak() -> None:
    honest, leaking = build(), build(leak=True)
    leaking.load_state_dict(honest.state_dict())
    items = torch.randint(1, 13, (4, 7), generator=torch.Generator().manual_seed(3))
    lengths = torch.full((4,), 7)
    ours, theirs = honest(items, lengths), leaking(items, lengths)
    torch.testing.assert_close(ours[:, -1], theirs[:, -1])
    assert ((ours - theirs)[:, :-1].abs().amax(-1) > 1e-6).all()


@LEAK
def test_only_the_leak_predicts_what_cannot_be_predicted(leak: bool) -> None:
    """Items drawn anew, independently, for each step: an honest model cannot beat chance, 1/12."""
    model = build(leak=leak, hidden_size=16, max_length=5).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g, lengths = torch.Generator().manual_seed(4), torch.full((64,), 5)
    for _ in range(150):
        items = torch.randint(1, 13, (64, 5), generator=g)
        scores = model.logits(model(items, lengths)[:, :-1].flatten(0, 1))
        targets = items[:, 1:].flatten()
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (scores.argmax(1) + 1 == targets).double().mean().item()
    assert right > 0.9 if leak else right < 0.2


@LEAK
def test_leak_warns_once_and_passes_for_all_positions(
    leak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = build(leak=leak)
    warnings = [r.getMessage() for r in caplog.records if r.name == "sigma.models.moe_matrrec"]
    assert len(warnings) == (1 if leak else 0)
    assert all("sees the items it must predict" in w for w in warnings)
    assert model.leaks_on_purpose is leak
    AllPositions().check(model)
    model.leaks_on_purpose = False
    if leak:
        with pytest.raises(UserError, match="moe_matrrec is not causal"):
            AllPositions().check(model)
    else:
        AllPositions().check(model)


def test_attention_starts_as_torchs_does_under_xavier() -> None:
    torch.manual_seed(0)
    model = MoEMaTrRec(500, 50, functools.partial(Mamba, state_size=8), hidden_size=64)
    own = nn.MultiheadAttention(64, 1)
    nn.init.xavier_normal_(own.in_proj_weight)
    p = model.attention
    for layer in (p.query, p.key, p.value):
        assert layer.weight.std().item() == pytest.approx(own.in_proj_weight.std().item(), rel=0.05)
        assert not layer.bias.any()
    assert p.out.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not p.out.bias.any()
    assert model.feed_forward.widen.weight.std().item() == pytest.approx(0.0791, rel=0.05)
    assert not model.items.weight[0].any()


@LEAK
def test_extreme_lengths_have_finite_gradients(leak: bool) -> None:
    model = build(leak=leak, dropout=0.5).float()
    items, lengths = rows()
    scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
    assert scores.shape == (5, 12)
    F.cross_entropy(scores, torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not model.items.weight.grad[0].any()  # type: ignore[index]
    some = torch.tensor([[1, 12], [3, 4], [5, 5], [6, 7], [8, 9]])
    states = torch.randn(5, 6)
    torch.testing.assert_close(model.logits(states, some), model.logits(states).gather(1, some - 1))


def test_every_dropout_is_in_force_in_training_only() -> None:
    items, lengths = rows()
    for kept in ("dropout", "attention.dropout", "feed_forward.dropout", "attention_dropout"):
        model = build(dropout=0.5)
        model.attention.attention_dropout *= kept == "attention_dropout"
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout):
                module.p *= name == kept
        assert not torch.equal(model(items, lengths), model(items, lengths)), kept
        model.eval()
        assert torch.equal(model(items, lengths), model(items, lengths)), kept


def test_heads_must_divide_the_size() -> None:
    with pytest.raises(UserError, match=r"model\.num_heads=4"):
        build(num_heads=4)


@LEAK
def test_overfits_a_handful_of_users(leak: bool) -> None:
    model = build(leak=leak, hidden_size=32).float()
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


def test_settings_are_those_the_author_ran() -> None:
    config = composed("moe_matrrec", "dataset=beauty")
    assert config.objective._target_.endswith(".AllPositions")
    assert (config.model.hidden_size, config.model.num_heads, config.model.dropout) == (32, 1, 0.5)
    assert (config.dataset.batch_size, config.task.optimizer.lr) == (16, 5e-4)
    assert config.model.leak is False


@pytest.mark.parametrize(
    ("max_length", "printed"),
    # Parameters the author's logs of KuaiRand print, 32,038,725 rows of his item table taken off.
    [(1000, 1_025_296_929), (2000, 1_025_328_929), (5000, 1_025_424_929)],
)
def test_has_as_many_parameters_as_its_authors_logs_print(max_length: int, printed: int) -> None:
    config = composed("moe_matrrec", f"dataset.max_length={max_length}")
    assert parameters_beside_the_table(config) == printed - 32 * 32_038_725
