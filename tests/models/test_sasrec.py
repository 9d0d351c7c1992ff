"""SASRec against its equations in plain loops and against torch's own layers; the shared layers."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.sasrec import NormFirstAttention, SASRec
from sigma.models.transformer import FeedForward, SelfAttention, TransformerLayer

FORMS = pytest.mark.parametrize("norm_first", [False, True], ids=["recbole", "authors"])


def randomise(model: nn.Module, seed: int = 0, std: float = 0.4) -> None:
    """Every weight, biases, norms and the row of padding too: none may hide behind a 0 or a 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * std)


def build(**options: object) -> SASRec:
    settings = {"max_length": 7, "hidden_size": 6, "inner_size": 10} | options
    settings = {"num_layers": 2, "num_heads": 2} | settings
    model = SASRec(num_items=12, dropout=0.0, attention_dropout=0.0, **settings)  # type: ignore[arg-type]
    randomise(model)
    return model.double()


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 1, 2, 3, 5])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, 13, (5, 7), generator=g)
    return items * (torch.arange(7) < lengths[:, None]), lengths


def real(items: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(items.shape[1]) < lengths[:, None]


# --- the equations, one row of real items at a time, one position, one head, one key at a time ---


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def relu(x: Tensor) -> Tensor:
    return (x + x.abs()) / 2


def mixed(queries: list[Tensor], states: list[Tensor], p: nn.Module, causal: bool) -> list[Tensor]:
    """softmax(Q K^T / sqrt(d)) V, the heads side by side; position t sees 0 … t if causal."""
    size = len(states[0])
    d = size // p.num_heads
    out = []
    for t, x in enumerate(queries):
        seen = states[: t + 1] if causal else states
        heads = []
        for first in range(0, size, d):
            part = slice(first, first + d)
            q = linear(x, p.query)[part]
            e = [((q * linear(s, p.key)[part]).sum() / math.sqrt(d)).exp() for s in seen]
            v = [linear(s, p.value)[part] for s in seen]
            heads.append(sum(a * b for a, b in zip(e, v, strict=True)) / sum(e))
        out.append(torch.cat(heads))
    return out


def transformer_layer(
    x: list[Tensor], p: TransformerLayer, activation: Callable[[Tensor], Tensor], causal: bool
) -> list[Tensor]:
    a, f = p.attention, p.feed_forward
    out = []
    for x_t, m_t in zip(x, mixed(x, x, a, causal), strict=True):
        h = norm(x_t + linear(m_t, a.out), a.norm)
        out.append(norm(h + linear(activation(linear(h, f.widen)), f.narrow), f.norm))
    return out


def norm_first_layer(
    x: list[Tensor], p: nn.Sequential, activation: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    a, f = p
    queries = [norm(x_t, a.norm) for x_t in x]
    out = []
    for q_t, m_t in zip(queries, mixed(queries, x, a, True), strict=True):
        h = norm(q_t + m_t, f.norm)
        out.append(h + linear(activation(linear(h, f.widen)), f.narrow))
    return out


def by_equations(
    model: SASRec, items: Tensor, lengths: Tensor, norm_first: bool, activation: Callable
) -> Tensor:
    """Scores (M, K) at every real position, row by row."""
    scores = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        e = [model.items.weight[i] for i in row[:length]]
        p = list(model.positions.table.weight)
        if norm_first:
            x = [e_t * math.sqrt(len(e_t)) + p[t] for t, e_t in enumerate(e)]
            for layer in model.layers:
                x = norm_first_layer(x, layer, activation)
            x = [norm(x_t, model.norm) for x_t in x]
        else:
            x = [norm(e_t + p[t], model.norm) for t, e_t in enumerate(e)]
            for layer in model.layers:
                x = transformer_layer(x, layer, activation, causal=True)
        for x_t in x:
            scores.append(torch.stack([(x_t * model.items.weight[k]).sum() for k in range(1, 13)]))
    return torch.stack(scores)


def assert_same_gradients(model: nn.Module, got: Tensor, want: Tensor) -> None:
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 1, "num_heads": 1},
        {"num_heads": 6},
        {"activation": "relu"},
        {"norm_first": True},
        {"norm_first": True, "num_heads": 1, "activation": "relu"},
    ],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    model = build(**options)
    items, lengths = rows()
    got = model.logits(model(items, lengths)[real(items, lengths)])
    activation = relu if options.get("activation") == "relu" else gelu
    want = by_equations(model, items, lengths, options.get("norm_first", False), activation)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert_same_gradients(model, got, want)


# --- torch's own layers, weights copied ---


def copy_attention(theirs: nn.MultiheadAttention, ours: SelfAttention) -> None:
    maps = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
        if hasattr(ours, "out"):
            theirs.out_proj.load_state_dict(ours.out.state_dict())
        else:
            theirs.out_proj.weight.copy_(torch.eye(len(ours.query.bias)))
            theirs.out_proj.bias.zero_()


def torch_layer(ours: TransformerLayer, activation: str) -> nn.TransformerEncoderLayer:
    size, inner = ours.feed_forward.narrow.weight.shape
    heads = ours.attention.num_heads
    theirs = nn.TransformerEncoderLayer(
        size, heads, inner, 0.0, activation, layer_norm_eps=1e-12, batch_first=True
    ).double()
    copy_attention(theirs.self_attn, ours.attention)
    theirs.norm1.load_state_dict(ours.attention.norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.widen.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.narrow.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward.norm.state_dict())
    return theirs


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_causal_layer_is_torchs_encoder_layer(activation: str) -> None:
    ours = TransformerLayer(6, 3, 10, 0.0, 0.0, activation)
    randomise(ours)
    theirs = torch_layer(ours.double(), activation)
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    got, want = ours(x), theirs(x, src_mask=future)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(got)
    torch.testing.assert_close(
        *(torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want))
    )


def test_norm_first_attention_is_torchs_with_normed_queries() -> None:
    ours = NormFirstAttention(6, 2, 0.0)
    randomise(ours)
    theirs = nn.MultiheadAttention(6, 2, batch_first=True).double()
    copy_attention(theirs, ours.double())
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    queries = ours.norm(x)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    want = queries + theirs(queries, x, x, attn_mask=future, need_weights=False)[0]
    torch.testing.assert_close(ours(x), want, rtol=1e-9, atol=1e-10)


# --- causality, padding ---


@FORMS
@pytest.mark.parametrize("changed", [1, 4, 6])
def test_a_later_item_moves_no_earlier_state(norm_first: bool, changed: int) -> None:
    model = build(norm_first=norm_first)
    assert model.causal
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    other = items.clone()
    other[0, changed] = 12
    lengths = torch.tensor([7])
    moved = (model(items, lengths) - model(other, lengths)).abs().amax(-1)[0]
    assert (moved[:changed] < 1e-12).all()
    assert (moved[changed:] > 1e-4).all()


@FORMS
@pytest.mark.parametrize("extra", [1, 30])
def test_padding_columns_change_no_score(norm_first: bool, extra: int) -> None:
    model = build(norm_first=norm_first, max_length=37).float()
    assert model.padding_invariant
    items, lengths = rows()
    wide = F.pad(items, (0, extra))
    narrow_scores = model.logits(model(items, lengths)[real(items, lengths)])
    wide_scores = model.logits(model(wide, lengths)[real(wide, lengths)])
    torch.testing.assert_close(narrow_scores, wide_scores, rtol=1e-5, atol=1e-5)


@FORMS
def test_padding_row_is_zero_without_gradient_and_outside_the_scores(norm_first: bool) -> None:
    model = SASRec(num_items=12, max_length=7, norm_first=norm_first)
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


# --- switches ---


def test_the_authors_form_has_no_output_map_and_starts_xavier() -> None:
    torch.manual_seed(0)
    options = {"num_items": 500, "max_length": 50, "hidden_size": 50, "inner_size": 50}
    model = SASRec(norm_first=True, **options)  # type: ignore[arg-type]
    assert not any(".out." in name for name, _ in model.named_parameters())
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all()
        elif p.dim() == 2:
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.98 * bound < p.abs().max() <= bound
        else:
            assert not p.any()


def test_recboles_form_starts_normal() -> None:
    torch.manual_seed(0)
    model = SASRec(num_items=500, max_length=50)
    assert any(".out." in name for name, _ in model.named_parameters())
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all()
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert not p.any()


@FORMS
@pytest.mark.parametrize("which", ["dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_only(norm_first: bool, which: str) -> None:
    chances = {"dropout": 0.0, "attention_dropout": 0.0} | {which: 0.5}
    model = SASRec(num_items=12, max_length=7, norm_first=norm_first, **chances)
    randomise(model)
    items, lengths = rows()
    assert not torch.allclose(model(items, lengths), model(items, lengths))
    model.eval()
    with_chance = model(items, lengths)
    torch.testing.assert_close(with_chance, model(items, lengths))
    without = SASRec(12, 7, norm_first=norm_first, dropout=0.0, attention_dropout=0.0)
    randomise(without)
    torch.testing.assert_close(with_chance, without(items, lengths))


def test_dropout_of_attention_weights_keeps_their_mean() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(4, 2, 0.0, attention_dropout=0.3)
    randomise(layer)
    x = torch.randn(1, 3, 4)
    draws = layer.mix(x.expand(20_000, 3, 4), x.expand(20_000, 3, 4))
    error = draws.std(0) / math.sqrt(20_000)
    assert (error > 0).all()
    off = (draws.mean(0) - layer.eval().mix(x, x)[0]).abs()
    assert (off < 4.5 * error).all()


def test_dropout_inside_the_feed_forward_keeps_its_mean() -> None:
    torch.manual_seed(0)
    layer = FeedForward(4, 8, 0.0, inner_dropout=0.3)
    randomise(layer)
    x = torch.randn(4)
    draws = layer.update(x.expand(20_000, 4))
    error = draws.std(0) / math.sqrt(20_000)
    assert (error > 0).all()
    assert ((draws.mean(0) - layer.eval().update(x)).abs() < 4.5 * error).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"hidden_size=6 must be a multiple of model\.num_heads=5"),
        ({"num_heads": 0}, r"hidden_size=6 must be a multiple of model\.num_heads=0"),
        ({"norm_first": True, "num_heads": 4}, r"must be a multiple of model\.num_heads=4"),
        ({"activation": "tanh"}, r"Unknown model\.activation 'tanh'; choose gelu or relu"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_an_input_longer_than_the_positions_is_refused() -> None:
    model = build(max_length=6)
    with pytest.raises(UserError, match=r"holds 7 positions, the model 6; .*model\.max_length"):
        model(*rows())


@FORMS
def test_overfits_a_handful_of_users(norm_first: bool) -> None:
    torch.manual_seed(0)
    model = SASRec(12, 7, 32, dropout=0.0, attention_dropout=0.0, norm_first=norm_first)
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
