"""Mamba4Rec against its equations in plain loops; initialisation, residual, dropout."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from sigma.models.mamba import Mamba
from sigma.models.mamba4rec import Mamba4Rec, Mamba4RecLayer
from tests.models.checks import MAMBA, K, assert_same_scores, composed, rows, shake
from tests.models.slow import feed_forward, gelu, mamba, norm


def build(**options: object) -> Mamba4Rec:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "dropout": 0.0} | options
    return Mamba4Rec(num_items=K, mamba=MAMBA, **settings).double()  # type: ignore[arg-type]


def by_equations(model: Mamba4Rec, items: Tensor, lengths: Tensor) -> Tensor:
    """States at every real position, row by row."""
    out = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        xs = [norm(model.items.weight[i], model.norm) for i in row[:length]]
        for layer in model.layers:
            assert isinstance(layer, Mamba4RecLayer)
            residual = len(model.layers) > 1
            ys = zip(xs, mamba(xs, layer.mamba), strict=True)
            hs = [norm(m + x if residual else m, layer.norm) for x, m in ys]
            xs = [feed_forward(h, layer.feed_forward, gelu) for h in hs]
        out.extend(xs)
    return torch.stack(out)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_the_equations_with_gradients(num_layers: int) -> None:
    model = build(num_layers=num_layers)
    shake(model)
    items, lengths = rows()
    want = by_equations(model, items, lengths)
    assert_same_scores(model, items, lengths, want)


def test_start_reaches_into_mamba_as_in_the_authors_code() -> None:
    block = functools.partial(Mamba, step_min=0.01, step_max=0.02)
    for reinit_mamba in (True, False):
        torch.manual_seed(0)
        model = Mamba4Rec(num_items=500, mamba=block, reinit_mamba=reinit_mamba)
        layer = model.layers[0]
        bias = layer.mamba.dt_proj.bias
        if reinit_mamba:
            assert not bias.any()
        else:
            steps = F.softplus(bias)
            assert steps.min() >= 0.0099
            assert steps.max() <= 0.0201
        for linear_ in (m for m in layer.mamba.modules() if isinstance(m, nn.Linear)):
            near = abs(linear_.weight.std().item() - 0.02) < 0.002
            assert near == reinit_mamba
        torch.testing.assert_close(layer.mamba.A_log[0].exp(), torch.arange(1.0, 33))
        assert layer.mamba.conv1d.bias.any()  # PyTorch's draw, untouched
        for outer in (layer.feed_forward.widen, layer.feed_forward.narrow, model.items):
            assert abs(outer.weight.std().item() - 0.02) < 0.002
        assert not layer.feed_forward.widen.bias.any()
        assert not model.items.weight[0].any()


@pytest.mark.parametrize(
    ("dataset", "num_items", "size"), [("beauty", 12101, 846784), ("ml_1m", 3416, 290944)]
)
def test_as_large_as_the_model_of_the_sigma_authors_log(
    dataset: str, num_items: int, size: int
) -> None:
    config = composed("mamba4rec_one_layer", f"dataset={dataset}")
    model = instantiate(config.model, num_items=num_items)
    assert sum(p.numel() for p in model.parameters()) == size
    assert (model.name, model.dropout.p, len(model.layers)) == ("mamba4rec_one_layer", 0.2, 1)
