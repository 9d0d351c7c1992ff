"""BERT4Rec against its equations in plain loops; the mask token."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigma.models.bert4rec import BERT4Rec
from tests.models import checks
from tests.models.slow import gelu, linear, norm, relu, transformer_layer

L = 7
MASK = checks.K + 1


def training_rows() -> tuple[Tensor, Tensor]:
    """Masks at the start, in the middle, at the end, everywhere, nowhere."""
    items, lengths = checks.five(L)
    for row, place in ((0, 0), (0, 3), (0, 6), (1, 0), (2, 1), (3, 0), (3, 1), (3, 2)):
        items[row, place] = MASK
    return items, lengths


def evaluation_rows() -> tuple[Tensor, Tensor]:
    """One mask after the last of 1 … L items: rows of up to L + 1 positions."""
    items, lengths = checks.padded((8, 2, 3, 4, 6), L + 1)
    items[torch.arange(5), lengths - 1] = MASK
    return items, lengths


def row_states(model: BERT4Rec, row: Tensor, length: int, options: dict) -> list[Tensor]:
    activation = relu if options.get("activation") == "relu" else gelu
    x = [
        norm(model.items.weight[i] + model.positions.table.weight[t], model.norm)
        for t, i in enumerate(row[:length])
    ]
    for layer in model.layers:
        x = transformer_layer(x, layer, activation, options.get("num_heads", 2), causal=False)
    return [norm(gelu(linear(x_t, model.out)), model.out_norm) for x_t in x]


@pytest.mark.parametrize("rows", [training_rows, evaluation_rows])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 1, "num_heads": 1}, {"num_heads": 3, "activation": "relu"}],
    ids=str,
)
def test_equals_the_equations_with_gradients(rows: Callable, options: dict) -> None:
    checks.assert_equations(
        checks.tiny(BERT4Rec, **options), row_states, options, padded_rows=rows()
    )
