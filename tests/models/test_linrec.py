"""LinRec against softmax-free attention in plain loops, all pairs of positions; padding, masks."""

import math

import pytest
import torch
from torch import Tensor, nn

from sigma.models.linrec import LinRec
from tests.models.checks import assert_equations, every_state, five, packed, tiny
from tests.models.slow import embedded, feed_forward, gelu, linear, norm


def unit(x: Tensor) -> Tensor:
    x = torch.where(x > 0, x, x.exp() - 1)
    return x / x.pow(2).sum().sqrt()


def row_states(model: LinRec, row: Tensor, length: int, options: dict) -> list[Tensor]:
    """The authors' model sees the whole padded row, the masked one real items alone."""
    heads = options.get("num_heads", 2)
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
    return x[:length]


@pytest.mark.parametrize(
    "options",
    [{}, {"mask_padding": True}, {"num_heads": 1}, {"num_heads": 3, "num_layers": 1}],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    # At the start every ELU is nearly linear.
    assert_equations(tiny(LinRec, std=0.7, **options), row_states, options)


def test_a_zero_vector_is_no_division_by_zero() -> None:
    model = tiny(LinRec, std=0.7)
    for layer in model.layers:
        nn.init.zeros_(layer.attention.query.weight)
        nn.init.zeros_(layer.attention.query.bias)
    states = every_state(model, *packed(*five()))
    states.sin().sum().backward()
    assert states.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
