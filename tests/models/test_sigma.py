"""SIGMA against its equations, written once more in plain loops; padding, flip and ablations."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.models.mamba import Mamba
from sigma.models.sigma import Sigma, SigmaLayer, partial_flip


def build(seed: int = 0, **options: object) -> Sigma:
    torch.manual_seed(seed)
    settings = {"hidden_size": 6, "dropout": 0.0, "r": 2} | options
    mamba = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)
    return Sigma(num_items=12, mamba=mamba, **settings).double()  # type: ignore[arg-type]


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 1, 2, 3, 5])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, 13, (5, 7), generator=g)
    return items * (torch.arange(7) < lengths[:, None]), lengths


# --- the equations, one row of real items at a time, no padding, no vectorised convolution ---


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def conv(xs: list[Tensor], layer: torch.nn.Conv1d, depthwise: bool) -> list[Tensor]:
    out = []
    k = layer.weight.shape[-1]
    for t in range(len(xs)):
        y = layer.bias
        for tap in range(k):
            if (source := t - (k - 1 - tap)) >= 0:
                w = layer.weight[:, :, tap]
                y = y + (w[:, 0] * xs[source] if depthwise else w @ xs[source])
        out.append(y)
    return out


def mamba(xs: list[Tensor], m: Mamba) -> list[Tensor]:
    split = [(m.in_proj.weight @ x).chunk(2) for x in xs]
    us = [F.silu(u) for u in conv([s[0] for s in split], m.conv1d, True)]
    state = us[0].new_zeros(len(us[0]), m.state_size)
    A, out = -m.A_log.exp(), []
    for u, (_, z) in zip(us, split, strict=True):
        raw, B, C = (m.x_proj.weight @ u).split([m.rank, m.state_size, m.state_size])
        step = torch.log1p((m.dt_proj.weight @ raw + m.dt_proj.bias).exp())
        state = (step[:, None] * A).exp() * state + (step * u)[:, None] * B
        out.append(m.out_proj.weight @ ((state @ C + m.D * u) * z * torch.sigmoid(z)))
    return out


def gru(xs: list[Tensor], g: torch.nn.GRU) -> list[Tensor]:
    f, out = torch.zeros_like(xs[0]), []
    for x in xs:
        wr, wz, wn = (g.weight_ih_l0 @ x + g.bias_ih_l0).chunk(3)
        ur, uz, un = (g.weight_hh_l0 @ f + g.bias_hh_l0).chunk(3)
        r, z = torch.sigmoid(wr + ur), torch.sigmoid(wz + uz)
        f = z * f + (1 - z) * torch.tanh(wn + r * un)  # eq. 7
        out.append(f)
    return out


def linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def layer_by_equations(h: list[Tensor], p: SigmaLayer, r: int) -> list[Tensor]:
    n = max(len(h) - r, 0)
    hf = list(reversed(h[:n])) + h[n:] if p.flip else h  # eq. 2
    m, mf = mamba(h, p.mamba), mamba(hf, p.flipped_mamba or p.mamba)
    if p.gate is not None:
        gate = p.gate

        def gates(xs: list[Tensor]) -> list[Tensor]:  # eq. 4-6
            inner = conv([linear(x, gate.inner) for x in xs], gate.conv.conv, True)
            g = [linear(x, gate.outer) for x in inner]
            return [x * torch.sigmoid(x) + torch.sigmoid(x) for x in g]

        m = [g * x + x for g, x in zip(gates(h), m, strict=True)]  # eq. 3, with the residual
        mf = [g * x + x for g, x in zip(gates(hf), mf, strict=True)]
    z = [p.mix_mamba * (a + b) for a, b in zip(m, mf, strict=True)]  # eq. 8
    if p.gru is not None:
        f = gru(conv(h, p.conv.conv, False), p.gru)
        z = [a + p.mix_gru * b for a, b in zip(z, f, strict=True)]
    out = []
    for x, z_t in zip(h, z, strict=True):
        mixed = norm(linear(z_t, p.mixed) + linear(x, p.shortcut), p.mixed_norm)  # eq. 9
        wide = linear(mixed, p.widen)
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        out.append(norm(mixed + linear(wide, p.narrow), p.norm))  # eq. 10
    return out


def by_equations(model: Sigma, items: Tensor, lengths: Tensor, r: int) -> Tensor:
    finals = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        h = [norm(model.items.weight[i], model.norm) for i in row[:length]]
        for layer in model.layers:
            h = layer_by_equations(h, layer, r)
        finals.append(h[-1])
    return torch.stack(finals)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_mamba": False},
        {"num_layers": 2},
        {"partial_flip": False},
        {"gate": False},
        {"gru": False},
        {"r": 0},
        {"r": 50},
    ],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    model = build(**options)
    items, lengths = rows()
    got = model(items, lengths)[torch.arange(5), lengths - 1]
    want = by_equations(model, items, lengths, options.get("r", 2))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_partial_flip_by_hand() -> None:
    index = partial_flip(torch.tensor([6, 3, 2, 1]), width=7, keep=2)
    assert index.tolist() == [
        [3, 2, 1, 0, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    assert partial_flip(torch.tensor([4]), 5, 0).tolist() == [[3, 2, 1, 0, 4]]
    assert partial_flip(torch.tensor([4]), 5, 4).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("extra", [1, 30])
def test_padding_columns_change_no_score(extra: int) -> None:
    model = build(num_layers=2).float()
    items, lengths = rows()
    wide = F.pad(items, (0, extra))
    rows_ = torch.arange(5)
    narrow_scores = model.logits(model(items, lengths)[rows_, lengths - 1])
    wide_scores = model.logits(model(wide, lengths)[rows_, lengths - 1])
    torch.testing.assert_close(narrow_scores, wide_scores, rtol=1e-5, atol=1e-6)


def test_r_of_the_whole_length_is_no_flip() -> None:
    items, lengths = rows()
    never, switched_off = build(r=7), build(partial_flip=False)
    torch.testing.assert_close(never(items, lengths), switched_off(items, lengths))
    assert not torch.allclose(build(r=0)(items, lengths), never(items, lengths))


def test_ablations_drop_their_parameters() -> None:
    def size(**options: object) -> int:
        return sum(p.numel() for p in build(**options).parameters())

    assert size(gate=False) < size()
    assert size(gru=False) < size()
    assert size(shared_mamba=False) > size()
    assert size(partial_flip=False) == size()


def test_padding_row_stays_zero_and_outside_the_scores() -> None:
    model = build()
    items, lengths = rows()
    scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
    assert scores.shape == (5, 12)
    F.cross_entropy(scores, torch.arange(5)).backward()
    assert model.items.weight.grad is not None
    assert not model.items.weight.grad[0].any()
    assert not model.items.weight[0].any()


def test_overfits_a_handful_of_users() -> None:
    model = build(hidden_size=32).float()
    items, lengths = rows()
    targets = torch.tensor([3, 9, 1, 12, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()
