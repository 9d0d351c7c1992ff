"""SASRec against its equations in plain loops and against torch's own layers; the shared layers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sigma.models.sasrec import NormFirstAttention, SASRec
from sigma.models.transformer import TransformerLayer
from sigma.ops import whole_rows
from tests.models.checks import K, assert_equations, shake, torch_attention, torch_layer
from tests.models.slow import gelu, mixed, norm, relu, transformer_layer, update


def build(**options: object) -> SASRec:
    settings = {"max_length": 7, "hidden_size": 6, "inner_size": 10} | options
    settings = {"num_layers": 2, "num_heads": 2} | settings
    model = SASRec(num_items=K, dropout=0.0, attention_dropout=0.0, **settings)  # type: ignore[arg-type]
    shake(model)
    return model.double()


# --- the equations, one row of real items at a time, one position, one head, one key at a time ---


def norm_first_layer(
    x: list[Tensor], p: nn.Module, activation: Callable, heads: int
) -> list[Tensor]:
    a, f = p.attention, p.feed_forward
    queries = [norm(x_t, a.norm) for x_t in x]
    out = []
    for q_t, m_t in zip(queries, mixed(queries, x, a, heads, causal=True), strict=True):
        h = norm(q_t + m_t, f.norm)
        out.append(h + update(h, f, activation))
    return out


def row_states(model: SASRec, row: Tensor, length: int, options: dict) -> list[Tensor]:
    activation = relu if options.get("activation") == "relu" else gelu
    heads = options.get("num_heads", 2)
    e = [model.items.weight[i] for i in row[:length]]
    p = list(model.positions.table.weight)
    if options.get("norm_first"):
        x = [e_t * math.sqrt(len(e_t)) + p[t] for t, e_t in enumerate(e)]
        for layer in model.layers:
            x = norm_first_layer(x, layer, activation, heads)
        x = [norm(x_t, model.norm) for x_t in x]
    else:
        x = [norm(e_t + p[t], model.norm) for t, e_t in enumerate(e)]
        for layer in model.layers:
            x = transformer_layer(x, layer, activation, heads, causal=True)
    return x


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
    assert_equations(model, row_states, options)


# --- torch's own layers, weights copied ---


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_causal_layer_is_torchs_encoder_layer(activation: str) -> None:
    ours = TransformerLayer(6, 3, 10, dropout=0.0, attention_dropout=0.0, activation=activation)
    shake(ours)
    theirs = torch_layer(ours.double(), 3, activation)
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    got = ours(x.flatten(0, 1), whole_rows(4, 5, x.device)).view_as(x)
    want = theirs(x, src_mask=future)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(got)
    torch.testing.assert_close(
        *(torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want))
    )


def test_norm_first_attention_is_torchs_with_normed_queries() -> None:
    ours = NormFirstAttention(6, 2, attention_dropout=0.0)
    shake(ours)
    theirs = torch_attention(ours.double(), heads=2)
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    queries = ours.norm(x)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    want = queries + theirs(queries, x, x, attn_mask=future, need_weights=False)[0]
    got = ours(x.flatten(0, 1), whole_rows(4, 5, x.device)).view_as(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


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
