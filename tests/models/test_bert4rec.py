"""BERT4Rec against its equations in plain loops; the mask token."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.losses import CrossEntropy
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
    if options.get("head_map") is False:
        return x
    return [norm(gelu(linear(x_t, model.out)), model.out_norm) for x_t in x]


@pytest.mark.parametrize("rows", [training_rows, evaluation_rows])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 1, "num_heads": 1},
        {"num_heads": 3, "activation": "relu"},
        {"head_map": False, "padding_item": True},
    ],
    ids=str,
)
def test_equals_the_equations_with_gradients(rows: Callable, options: dict) -> None:
    checks.assert_equations(
        checks.tiny(BERT4Rec, **options), row_states, options, padded_rows=rows()
    )


def test_padding_and_mask_are_classes_of_the_tuned_softmax() -> None:
    model = checks.tiny(BERT4Rec, head_map=False, padding_item=True)
    items, lengths = training_rows()
    states = checks.every_state(model, *checks.packed(items, lengths))
    targets = torch.arange(len(states)) % checks.K + 1
    loss = CrossEntropy(torch.ones(checks.K))(states, targets, model.logits)
    again = checks.every_state(model, *checks.packed(items, lengths))
    want = F.cross_entropy(again @ model.items.weight.T, targets)  # padding's class is the first
    checks.assert_same(model, loss, want)
