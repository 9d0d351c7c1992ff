"""The released SIGMA against its computation in plain loops; each defect and its switch."""

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from sigma.losses import CrossEntropy
from sigma.models.sigma_released import ReleasedLayer, SigmaReleased
from sigma.runs.check import parameters
from tests.models import checks
from tests.models.slow import conv, embedded, feed_forward, gelu, gru, linear, mamba, norm

LOSS = CrossEntropy(torch.ones(checks.K))
MENDED = dict.fromkeys(checks.RELEASED, False) | {"flip_until": None, "r": 2}
CLOSER = {
    **dict.fromkeys(("shared_mamba", "separate_dense", "gate_residual"), False),
    "gru_bias": True,
    "mix": [0.5, 0.5, 0.5],
}
LOGGED = {"conv": False, "flipped_gate": "forward", "projection": False}
UPLOADED = {"conv": False, "flip_until": 95}  # the file's first version, 36d459c


def build(std: float = 0.4, **options: object) -> SigmaReleased:
    model = checks.tiny(SigmaReleased, std, **options)
    if not model.padding_item:
        nn.init.zeros_(model.items.weight[0].detach())
    return model


# --- the released computation, one row at a time with all its columns, padding among them ---


def layer_by_loops(x: list[Tensor], n: int, p: ReleasedLayer, o: dict) -> list[Tensor]:
    until = o.get("flip_until", 45)
    span = min(until, len(x)) if until is not None else max(n - o.get("r", 5), 0)
    xf = [x[span - 1 - t] if t < span else x[t] for t in range(len(x))]
    shared = o.get("shared_mamba", True)
    m, mf = mamba(x, p.mambas[0]), mamba(xf, p.mambas[0 if shared else 1])
    ahead = 1 if o.get("look_ahead", True) else 0
    c = conv(x, p.conv.conv, False, ahead) if o.get("conv", True) else x
    f = gru(c, p.gru, bias=o.get("gru_bias", False))
    second = p.gate.flipped_dense if o.get("separate_dense", True) else p.gate.dense
    out = []
    for t in range(len(x)):
        h = linear(x[t], p.gate.dense) + x[t]
        g = linear(h * torch.sigmoid(h), p.gate.silu) + linear(torch.sigmoid(h), p.gate.sigmoid)
        if (other := o.get("flipped_gate")) is None:
            hf = linear(xf[t], second) + xf[t]
            read = g if o.get("cross_gate", True) else hf
            gf = linear(hf * torch.sigmoid(hf), p.gate.silu)
            gf = gf + linear(torch.sigmoid(read), p.gate.sigmoid)
        else:
            gf = g if other == "forward" else 0.0 * g
        a, b = m[t] * g, mf[t] * gf
        if o.get("gate_residual", True):
            a, b = a + m[t], b + mf[t]
        z = p.mix[2] * a + p.mix[1] * b + p.mix[0] * f[t]
        z = linear(z, p.mixed) if o.get("projection", True) else z
        y = norm(z + x[t] if o.get("num_layers", 1) > 1 else z, p.norm)
        out.append(feed_forward(y, p.feed_forward, gelu))
    return out


def by_loops(model: SigmaReleased, items: Tensor, lengths: Tensor, o: dict) -> Tensor:
    finals = []
    for row, n in zip(items, lengths.tolist(), strict=True):
        x = [norm(embedded(model.items, i), model.norm) for i in row]
        for layer in model.layers:
            x = layer_by_loops(x, n, layer, o)
        finals.append(x[n - 1])
    return torch.stack(finals)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"flip_until": 5}, {"flip_until": 0}, {"flip_until": None, "r": 2}),
        *({part: False} for part in ("cross_gate", "look_ahead", "padding_item")),
        *({key: value} for key, value in CLOSER.items()),
        *(LOGGED, LOGGED | {"flipped_gate": "none", "num_layers": 2}, UPLOADED),
        {"num_layers": 2, "flip_until": 5},
        MENDED | CLOSER | {"num_layers": 2},
    ],
    ids=str,
)
def test_equals_the_released_computation_with_gradients(options: dict) -> None:
    model = build(**options)
    items, lengths = checks.five()
    targets = torch.tensor([3, 9, 1, 12, 5])
    got = checks.last_states(model, *checks.packed(items, lengths))
    want = by_loops(model, items, lengths, options)
    got_loss = LOSS(got, targets, model.logits)
    first = 0 if options.get("padding_item", True) else 1  # the softmax's first class
    want_loss = torch.zeros((), dtype=torch.float64)
    for state, target in zip(want, targets, strict=True):
        scores = model.items.weight[first:] @ state
        want_loss = want_loss - (scores[target - first] - scores.exp().sum().log()) / len(targets)
    checks.assert_same(
        model, torch.hstack([got.flatten(), got_loss]), torch.hstack([want.flatten(), want_loss])
    )


# --- the defects ---


def flipped_direction_sees(**options: object) -> list[int]:
    """For n = 1 … 50 of N = 50: real items behind the state that Mf has at a row's last item."""
    model = build(std=0.0, **options)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    model.norm.register_forward_hook(keep)
    model.layers[0].mambas[-1].register_forward_hook(keep)
    lengths = torch.arange(1, 51)
    is_real = torch.arange(50) < lengths[:, None]
    checks.last_states(model, *checks.packed(torch.randint(1, 13, (50, 50)), lengths))
    embedded, flipped = outputs[0], outputs[-1]
    assert flipped.shape == (50, 6)  # at the last items
    flipped.sum().backward()
    assert embedded.grad is not None
    return (embedded.grad.any(dim=-1) & is_real).sum(dim=1).tolist()


def test_flipped_direction_of_at_most_22_items_has_seen_padding_alone() -> None:
    seen = flipped_direction_sees()
    assert [n for n, items in enumerate(seen, start=1) if items == 0] == list(range(1, 23))
    # Then it starts from the oldest padding and ends in the row's items 46 - n … n.
    assert seen[22:] == [*range(1, 46, 2), *range(46, 51)]
    assert flipped_direction_sees(flip_until=None) == list(range(1, 51))  # mended


@pytest.mark.parametrize("cross_gate", [True, False])
def test_cross_gate_is_all_a_short_row_puts_into_the_flipped_direction(cross_gate: bool) -> None:
    """Only the flipped direction counts (mix); two rows of 22 items that share no item."""
    model = build(mix=[0, 1, 0], cross_gate=cross_gate, std=0.0)
    items = torch.zeros(2, 50, dtype=torch.long)
    items[0, :22], items[1, :22] = 3, torch.arange(22) % 3 + 7
    a, b = checks.last_states(model, *checks.packed(items, torch.tensor([22, 22])))
    assert torch.equal(a, b) is not cross_gate


def test_configuration_is_the_released_one() -> None:
    config = checks.composed("sigma_released").model
    for key, parameter in parameters(SigmaReleased).items():
        if key in config and key not in ("mamba", "name"):
            value = tuple(config[key]) if key == "mix" else config[key]
            assert value == parameter.default, key
    model = instantiate(config, num_items=12101, _convert_="all")
    # The authors' log of a Beauty run counts 904,517: two scalars more, no longer in the file.
    assert sum(p.numel() for p in model.parameters()) == 904_515
