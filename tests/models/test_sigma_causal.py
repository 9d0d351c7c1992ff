"""The causal SIGMA against its definition: every prefix alone, flipped and read in plain loops."""

import functools

import pytest
import torch
from torch import Tensor

from sigma.models.mamba import Mamba
from sigma.models.mamba2 import Mamba2
from sigma.models.sigma import Sigma
from sigma.models.sigma_causal import CausalSigma, CausalSigmaLayer
from tests.models import checks
from tests.models.slow import conv, feed_forward, gelu, gru, linear, mamba2, norm

MAMBA = functools.partial(Mamba2, state_size=3, head_size=4, step_min=0.2, step_max=0.8)


def last_state(h: list[Tensor], p: CausalSigmaLayer, r: int) -> Tensor:
    """Of a prefix."""
    m = len(h)
    n = max(m - r, 0) if p.partial_flip else 0
    order = [*reversed(range(n)), *range(n, m)]
    both = mamba2(h, p.mamba)[-1] + mamba2(h, p.flipped_mamba or p.mamba, order)[-1]
    if p.gate is not None:
        inner = conv([linear(x, p.gate.inner) for x in h], p.gate.conv.conv, True)
        g = linear(inner[-1], p.gate.outer)
        both = both + (g * torch.sigmoid(g) + torch.sigmoid(g)) * both
    z = p.mix_mamba * both
    if p.gru is not None:
        z = z + p.mix_gru * gru(conv(h, p.conv.conv, False), p.gru, bias=True)[-1]
    mixed = norm(linear(z, p.mixed) + linear(h[-1], p.shortcut), p.mixed_norm)
    return feed_forward(mixed, p, gelu)


def row_states(model: CausalSigma, row: Tensor, length: int, r: int) -> list[Tensor]:
    h = [norm(model.items.weight[i], model.norm) for i in row[:length]]
    for layer in model.layers:
        h = [last_state(h[: m + 1], layer, r) for m in range(length)]
    return h


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"num_layers": 2}, {"r": 1}, {"r": 5}, {"r": 50}),
        *({part: False} for part in ("shared_mamba", "partial_flip", "gate", "gru")),
    ],
    ids=str,
)
def test_each_state_is_that_of_its_prefix_with_gradients(options: dict) -> None:
    model = checks.tiny(CausalSigma, **{"r": 2, "mamba": MAMBA} | options)
    checks.assert_equations(model, row_states, options.get("r", 2))


def test_without_a_flip_it_is_sigma_with_mamba_2() -> None:
    ours, theirs = (checks.tiny(kind, mamba=MAMBA, r=50) for kind in (CausalSigma, Sigma))
    theirs.load_state_dict(ours.state_dict())
    rows = checks.packed(*checks.five())
    torch.testing.assert_close(checks.every_state(ours, *rows), checks.every_state(theirs, *rows))


def test_long_rows_and_large_steps_stay_exact() -> None:
    """In single precision, where decays reach 0: states and gradients of rows of 300."""
    model = checks.tiny(CausalSigma, mamba=MAMBA, r=4)
    model.layers[0].mamba.dt_bias.data += 3
    items, rows = checks.packed(*checks.padded((300, 7, 299), 300))
    results = []
    for kind in (torch.float64, torch.float32):
        states = checks.every_state(model.to(kind), items, rows)
        grads = torch.autograd.grad(states.cos().sum(), list(model.parameters()))
        results.append([states, *grads])
    for want, got in zip(*results, strict=True):
        error = (got.double() - want).norm() / want.norm()
        assert error < 1e-4


def test_mamba_1_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="Mamba-2 blocks"):
        CausalSigma(5, mamba=Mamba, hidden_size=8)
