"""SASRec against its equations in plain loops, in both forms."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sigma.losses import CrossEntropy
from sigma.models.sasrec import SASRec
from tests.models import checks
from tests.models.checks import K, assert_equations, assert_same, packed, padded, tiny
from tests.models.slow import gelu, linear, mixed, norm, relu, transformer_layer, update


def norm_first_layer(
    x: list[Tensor], p: nn.Module, activation: Callable, heads: int, output_map: bool
) -> list[Tensor]:
    a, f = p.attention, p.feed_forward
    queries = [norm(x_t, a.norm) for x_t in x]
    out = []
    for q_t, m_t in zip(queries, mixed(queries, x, a, heads, causal=True), strict=True):
        h = norm(q_t + (linear(m_t, a.out) if output_map else m_t), f.norm)
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
            x = norm_first_layer(x, layer, activation, heads, options.get("output_map", False))
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
        {"norm_first": True, "output_map": True, "start": "ported"},
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


def ported(model: SASRec, items: Tensor) -> Tensor:
    """The ports' forward on rows padded at their end, (B, L) -> scores (B, L, K + 1), of modules of
    PyTorch alone: attention of the normed states to those that are not, W_O, norms at 1e-12.
    """
    table, heads = model.items.weight, model.layers[0].attention.num_heads
    size = table.shape[1]
    x = F.embedding(items, table) * math.sqrt(size) + model.positions.table.weight[: items.shape[1]]
    later = torch.ones(items.shape[1], items.shape[1], dtype=torch.bool).triu(1)
    for layer in model.layers:
        a, f = layer.attention, layer.feed_forward
        maps = (a.query, a.key, a.value)
        q = F.layer_norm(x, (size,), a.norm.weight, a.norm.bias, 1e-12).transpose(0, 1)
        module = nn.MultiheadAttention(size, heads, dtype=x.dtype)
        weights = {
            "in_proj_weight": torch.cat([m.weight for m in maps]),
            "in_proj_bias": torch.cat([m.bias for m in maps]),
            "out_proj.weight": a.out.weight,
            "out_proj.bias": a.out.bias,
        }
        inputs = (q, x.transpose(0, 1), x.transpose(0, 1))
        mixed, _ = functional_call(module, weights, inputs, {"attn_mask": later})
        x = F.layer_norm((q + mixed).transpose(0, 1), (size,), f.norm.weight, f.norm.bias, 1e-12)
        wide = F.conv1d(x.transpose(1, 2), f.widen.weight[:, :, None], f.widen.bias).relu()
        x = x + F.conv1d(wide, f.narrow.weight[:, :, None], f.narrow.bias).transpose(1, 2)
    return F.layer_norm(x, (size,), model.norm.weight, model.norm.bias, 1e-12) @ table.T


def test_the_tuned_form_is_the_ports_with_padding_as_a_class() -> None:
    """Scores, loss over K + 1 classes, and the gradient of every parameter."""
    form = checks.composed("sasrec_tuned").model
    settings = {key: form[key] for key in ("norm_first", "output_map", "start", "padding_item")}
    model = tiny(SASRec, activation="relu", num_heads=1, inner_size=6, num_layers=3, **settings)
    items, lengths = padded((7, 1, 2, 6), 7)
    real = items > 0
    scores = model.logits(checks.every_state(model, *packed(items, lengths)))
    assert_same(model, scores, ported(model, items)[real][:, 1:])
    targets = items.roll(-1, 1)[real].clamp(min=1)
    states = checks.every_state(model, *packed(items, lengths))
    loss = CrossEntropy(torch.ones(K))(states, targets, model.logits)
    assert_same(model, loss, F.cross_entropy(ported(model, items)[real], targets))


def test_the_ports_start() -> None:
    torch.manual_seed(0)
    sizes = {"num_items": 500, "max_length": 128, "hidden_size": 64, "inner_size": 64}
    form = {"norm_first": True, "output_map": True, "start": "ported", "padding_item": True}
    model = SASRec(**sizes, **form)  # type: ignore[arg-type]
    theirs = nn.MultiheadAttention(64, 1).in_proj_weight.abs().max()
    for name, p in model.named_parameters():
        if "norm" in name or p.dim() == 1:
            assert (p == (1.0 if name.endswith("norm.weight") else 0.0)).all()
        elif any(part in name for part in ("query", "key", "value")):
            torch.testing.assert_close(p.abs().max(), theirs, rtol=0.01, atol=0)
            torch.testing.assert_close(p.std(), theirs / math.sqrt(3), rtol=0.03, atol=0)
        else:
            torch.testing.assert_close(p.std(), torch.tensor(0.02), rtol=0.05, atol=0)
    assert not model.items.weight[0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"output_map": True}, "norm_first=true alone"), ({"start": "zeros"}, "start='zeros' must")],
    ids=str,
)
def test_forms_that_there_are_not_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SASRec(num_items=K, max_length=7, **options)
