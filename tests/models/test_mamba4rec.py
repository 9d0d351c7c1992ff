"""Mamba4Rec against its equations in plain loops; initialisation, residual, dropout."""

import pytest
from hydra.utils import instantiate
from torch import Tensor

from sigma.models.mamba4rec import Mamba4Rec, Mamba4RecLayer
from tests.models.checks import assert_equations, composed, tiny
from tests.models.slow import feed_forward, gelu, mamba, norm


def row_states(model: Mamba4Rec, row: Tensor, length: int) -> list[Tensor]:
    xs = [norm(model.items.weight[i], model.norm) for i in row[:length]]
    for layer in model.layers:
        assert isinstance(layer, Mamba4RecLayer)
        residual = len(model.layers) > 1
        ys = zip(xs, mamba(xs, layer.mamba), strict=True)
        hs = [norm(m + x if residual else m, layer.norm) for x, m in ys]
        xs = [feed_forward(h, layer.feed_forward, gelu) for h in hs]
    return xs


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_the_equations_with_gradients(num_layers: int) -> None:
    assert_equations(tiny(Mamba4Rec, num_layers=num_layers), row_states)


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
