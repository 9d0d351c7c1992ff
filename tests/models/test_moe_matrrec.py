"""MoEMaTrRec against its equations in plain loops; what the leak does; its authors' start."""

import functools
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.datamodules.objectives import AllPositions
from sigma.errors import UserError
from sigma.models.mamba import Mamba
from sigma.models.moe_matrrec import MoEMaTrRec
from tests.models import checks
from tests.models.slow import attention, embedded, feed_forward, linear, mamba, relu

LEAK = pytest.mark.parametrize("leak", [False, True], ids=["honest", "leak"])


def build(**options: object) -> MoEMaTrRec:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "max_length": 40, "dropout": 0.0} | options
    model = MoEMaTrRec(num_items=checks.K, mamba=checks.MAMBA, **settings)  # type: ignore[arg-type]
    checks.shake(model)
    return model.double()


def row_states(model: MoEMaTrRec, row: Tensor, length: int, heads: int, leak: bool) -> list[Tensor]:
    places = model.positions.table.weight
    ids = row if leak else row[:length]
    scale = math.sqrt(places.shape[1])
    xs = [scale * embedded(model.items, i) + places[t] for t, i in enumerate(ids)]
    attended = attention(xs, model.attention, heads, causal=not leak)
    scanned, out = mamba(xs, model.mamba), []
    for t in range(length):
        seen = xs if leak else xs[: t + 1]
        g = 1 / (1 + torch.exp(-linear(sum(seen) / len(seen), model.gate)))
        c = g * scanned[t] + (1 - g) * attended[t]
        out.append(feed_forward(c, model.feed_forward, relu))
    return out


@LEAK
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_equations_with_gradients(leak: bool, heads: int) -> None:
    model = build(leak=leak, num_heads=heads)
    checks.assert_equations(model, row_states, heads, leak)


def test_full_rows_read_out_the_same_state_with_and_without_the_leak() -> None:
    honest, leaking = build(), build(leak=True)
    leaking.load_state_dict(honest.state_dict())
    items = torch.randint(1, 13, (4, 7), generator=torch.Generator().manual_seed(3))
    lengths = torch.full((4,), 7)
    ours, theirs = (checks.every_state(m, items, lengths).view(4, 7, 6) for m in (honest, leaking))
    torch.testing.assert_close(ours[:, -1], theirs[:, -1])
    assert ((ours - theirs)[:, :-1].abs().amax(-1) > 1e-6).all()


@pytest.mark.slow
@LEAK
def test_only_the_leak_predicts_what_cannot_be_predicted(leak: bool) -> None:
    """Items drawn anew, independently, for each step: an honest model cannot beat chance, 1/12."""
    model = build(leak=leak, hidden_size=16, max_length=5).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g, lengths = torch.Generator().manual_seed(4), torch.full((64,), 5)
    for _ in range(150):
        items = torch.randint(1, 13, (64, 5), generator=g)
        states = checks.every_state(model, items, lengths).unflatten(0, (64, 5))
        scores = model.logits(states[:, :-1].flatten(0, 1))
        targets = items[:, 1:].flatten()
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (scores.argmax(1) + 1 == targets).double().mean().item()
    assert right > 0.9 if leak else right < 0.2


@LEAK
def test_leak_warns_once_and_passes_for_all_positions(
    leak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = build(leak=leak)
    warnings = [r.getMessage() for r in caplog.records if r.name == "sigma.models.moe_matrrec"]
    assert len(warnings) == (1 if leak else 0)
    assert all("sees the items it must predict" in w for w in warnings)
    assert model.leaks_on_purpose is leak
    AllPositions().check(model)
    if leak:
        model.leaks_on_purpose = False
        with pytest.raises(UserError, match="is not causal"):
            AllPositions().check(model)


def test_attention_starts_as_torchs_does_under_xavier() -> None:
    torch.manual_seed(0)
    model = MoEMaTrRec(500, 50, functools.partial(Mamba, state_size=8), hidden_size=64)
    p = model.attention
    for layer in (p.query, p.key, p.value):  # one matrix (3 D, D) in torch
        assert layer.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.05)
    assert p.out.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not any(layer.bias.any() for layer in (p.query, p.key, p.value, p.out))
