"""BERT4Rec against its equations in plain loops and against torch's own layers; the mask token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.models.bert4rec import BERT4Rec
from sigma.models.transformer import TransformerLayer
from sigma.ops import places_of, rows_of
from tests.models import checks
from tests.models.slow import gelu, linear, norm, relu, transformer_layer

L = 7
MASK = checks.K + 1


def build(**options: object) -> BERT4Rec:
    settings = {"max_length": L, "hidden_size": 6, "inner_size": 10} | options
    model = BERT4Rec(num_items=checks.K, dropout=0.0, attention_dropout=0.0, **settings)  # type: ignore[arg-type]
    checks.shake(model)
    return model.double()


def training_rows() -> tuple[Tensor, Tensor]:
    """Masks at the start, in the middle, at the end, everywhere, nowhere."""
    lengths = torch.tensor([7, 1, 2, 3, 5])
    items = torch.tensor(
        [
            [MASK, 4, 9, MASK, 2, 2, MASK],
            [MASK, 0, 0, 0, 0, 0, 0],
            [8, MASK, 0, 0, 0, 0, 0],
            [MASK, MASK, MASK, 0, 0, 0, 0],
            [1, 12, 7, 3, 5, 0, 0],
        ]
    )
    return items, lengths


def evaluation_rows() -> tuple[Tensor, Tensor]:
    """One mask after the last of 1 … L items: rows of up to L + 1 positions."""
    lengths = torch.tensor([8, 2, 3, 4, 6])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, checks.K + 1, (5, L + 1), generator=g)
    items = items * (torch.arange(L + 1) < lengths[:, None])
    items[torch.arange(5), lengths - 1] = MASK
    return items, lengths


def by_equations(model: BERT4Rec, items: Tensor, lengths: Tensor, options: dict) -> Tensor:
    """Scores (M, K) at every real position, row by row, without padding."""
    activation = relu if options.get("activation") == "relu" else gelu
    heads = options.get("num_heads", 2)
    scores = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        x = [
            norm(model.items.weight[i] + model.positions.table.weight[t], model.norm)
            for t, i in enumerate(row[:length])
        ]
        for layer in model.layers:
            x = transformer_layer(x, layer, activation, heads, causal=False)
        for x_t in x:
            y = norm(gelu(linear(x_t, model.out)), model.out_norm)
            each = [
                (y * model.items.weight[k]).sum() + model.bias[k - 1]
                for k in range(1, checks.K + 1)
            ]
            scores.append(torch.stack(each))
    return torch.stack(scores)


@pytest.mark.parametrize("rows", [training_rows, evaluation_rows])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 1, "num_heads": 1}, {"num_heads": 3, "activation": "relu"}],
    ids=str,
)
def test_equals_the_equations_with_gradients(rows: object, options: dict) -> None:
    model = build(**options)
    items, lengths = rows()  # type: ignore[operator]
    got = model.logits(checks.every_state(model, items, lengths))
    checks.assert_same(model, got, by_equations(model, items, lengths, options))


# --- the shared layers on rows of several lengths, against torch's on padded ones ---


def test_a_layer_that_sees_whole_rows_is_torchs_encoder_layer() -> None:
    ours = TransformerLayer(6, 3, 10, dropout=0.0, attention_dropout=0.0, causal=False)
    checks.shake(ours)
    theirs = checks.torch_layer(ours.double(), 3, "gelu")
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 1, 3, 4])
    is_real = torch.arange(5) < lengths[:, None]
    got = ours(x[is_real], rows_of(lengths))
    want = theirs(x, src_key_padding_mask=~is_real)[is_real]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(got)
    ours_x, theirs_x = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(ours_x, theirs_x, rtol=1e-8, atol=1e-10)
    some = torch.tensor([1, 4, 5, 6, 12])
    partial = ours(x[is_real], rows_of(lengths), places_of(some, 13))
    torch.testing.assert_close(partial, want[some], rtol=1e-9, atol=1e-10)


# --- both directions, the mask token ---


def test_the_mask_token_is_read_and_learned_but_not_scored() -> None:
    model = BERT4Rec(num_items=checks.K, max_length=L)
    assert model.mask_token == MASK
    items, lengths = evaluation_rows()
    scores = model.logits(checks.last_states(model, items, lengths))
    assert scores.shape == (5, checks.K)
    F.cross_entropy(scores, torch.arange(5)).backward()
    assert model.items.weight.grad is not None
    assert model.items.weight.grad[MASK].any()
    # Scores know the mask's row only through the input: without a mask in it, not at all.
    unmasked = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    before = model.eval().logits(checks.last_states(model, *unmasked))
    with torch.no_grad():
        model.items.weight[MASK] += 1
    torch.testing.assert_close(model.logits(checks.last_states(model, *unmasked)), before)
