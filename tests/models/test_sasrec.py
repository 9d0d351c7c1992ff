"""SASRec against its equations in plain loops, in both forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sigma.models.sasrec import SASRec
from tests.models.checks import assert_equations, tiny
from tests.models.slow import gelu, mixed, norm, relu, transformer_layer, update


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
    assert_equations(tiny(SASRec, **options), row_states, options)


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
