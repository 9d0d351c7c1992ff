"""Mamba4Rec against its equations in plain loops; initialisation, residual, causality, padding."""

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from sigma.models.mamba import Mamba
from sigma.models.mamba4rec import Mamba4Rec, Mamba4RecLayer
from tests.models.test_sigma import linear, mamba, norm

CONF = Path(__file__).parents[2] / "conf"


def shake(model: nn.Module) -> None:
    """Move every parameter off its start, where zeros and ones would hide an error."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
        model.items.weight[0] = 0


def build(**options: object) -> Mamba4Rec:
    torch.manual_seed(0)
    block = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)
    settings = {"hidden_size": 6, "dropout": 0.0} | options
    return Mamba4Rec(num_items=12, mamba=block, **settings).double()  # type: ignore[arg-type]


def rows(width: int = 7) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([width, 1, 2, 3, width - 2])
    items = torch.randint(1, 13, (5, width), generator=torch.Generator().manual_seed(1))
    return items * (torch.arange(width) < lengths[:, None]), lengths


def last(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden[torch.arange(len(lengths)), lengths - 1]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def assert_same(model: nn.Module, got: Tensor, want: Tensor) -> None:
    """The same numbers and the same gradient of every parameter."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def by_equations(model: Mamba4Rec, items: Tensor, lengths: Tensor) -> Tensor:
    finals = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        xs = [norm(model.items.weight[i], model.norm) for i in row[:length]]
        for layer in model.layers:
            assert isinstance(layer, Mamba4RecLayer)
            out, ffn = [], layer.feed_forward
            for x, m in zip(xs, mamba(xs, layer.mamba), strict=True):
                h = norm(m + x if len(model.layers) > 1 else m, layer.norm)
                out.append(norm(h + linear(gelu(linear(h, ffn.widen)), ffn.narrow), ffn.norm))
            xs = out
        finals.append(xs[-1])
    return torch.stack(finals)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_the_equations_with_gradients(num_layers: int) -> None:
    model = build(num_layers=num_layers)
    shake(model)
    items, lengths = rows()
    got = last(model(items, lengths), lengths)
    assert_same(model, got, by_equations(model, items, lengths))


def test_the_first_residual_comes_with_the_second_layer() -> None:
    """Where Mamba says nothing, one layer forgets its input and two keep it."""
    items = torch.tensor([[1], [2]])
    for num_layers, differ in ((1, False), (2, True)):
        model = build(num_layers=num_layers)
        for layer in model.layers:
            nn.init.zeros_(layer.mamba.out_proj.weight)
        first, second = model(items, torch.tensor([1, 1]))[:, 0]
        assert (first - second).abs().max().item() > 0.1 if differ else first.equal(second)


def test_causal_and_padding_changes_nothing() -> None:
    model = build(num_layers=2)
    items, lengths = rows()
    assert model.causal
    assert model.padding_invariant
    hidden = model(items, lengths)
    changed = items.clone()
    changed[0, 4] = items[0, 4] % 12 + 1
    moved = (model(changed, lengths) - hidden)[0].abs().amax(1)
    assert not moved[:4].any()
    assert (moved[4:] > 1e-6).all()
    wide = model(F.pad(items, (0, 20)), lengths)
    real = torch.arange(7) < lengths[:, None]
    torch.testing.assert_close(wide[:, :7][real], hidden[real], rtol=1e-12, atol=1e-12)


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


def test_every_norm_has_the_authors_epsilon() -> None:
    assert {m.eps for m in build().modules() if isinstance(m, nn.LayerNorm)} == {1e-12}


def test_dropout_where_the_authors_have_it() -> None:
    """Embeddings, Mamba's output, and twice in the feed-forward layer."""
    model = build(num_layers=2, dropout=0.4)
    calls = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.4
            module.register_forward_hook(lambda m, a, out: calls.append(out.shape[-1]))
    items, lengths = rows()
    model(items, lengths)
    assert calls == [6, 6, 24, 6, 6, 24, 6]


def test_finite_gradients_for_the_shortest_and_the_full_row() -> None:
    model = build().float()
    items, lengths = rows()
    scores = model.logits(last(model(items, lengths), lengths))
    assert scores.shape == (5, 12)
    F.cross_entropy(scores, torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not model.items.weight.grad[0].any()
    chosen = torch.tensor([[1, 12]]).expand(5, 2)
    some = model.logits(last(model(items, lengths), lengths), chosen)
    torch.testing.assert_close(some, scores[:, [0, 11]])


@pytest.mark.parametrize(
    ("dataset", "num_items", "size"), [("beauty", 12101, 846784), ("ml_1m", 3416, 290944)]
)
def test_as_large_as_the_model_of_the_sigma_authors_log(
    dataset: str, num_items: int, size: int
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=["model=mamba4rec_one_layer", f"dataset={dataset}"])
    model = instantiate(config.model, num_items=num_items)
    assert sum(p.numel() for p in model.parameters()) == size
    assert (model.name, model.dropout.p, len(model.layers)) == ("mamba4rec_one_layer", 0.2, 1)


def test_overfits_a_handful_of_users() -> None:
    model = build(hidden_size=32).float()
    items, lengths = rows()
    targets = torch.tensor([3, 9, 1, 12, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        scores = model.logits(last(model(items, lengths), lengths))
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()
