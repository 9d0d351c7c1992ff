"""The Mamba-2 block against its equations in plain loops and transformers' own; its start."""

import functools

import pytest
import torch
from torch import Tensor

from sigma.models.mamba2 import Mamba2
from sigma.models.mamba4rec import Mamba4Rec
from sigma.ops import places_of, rows_of
from tests.models.checks import assert_equations, assert_same, built, shake, tiny
from tests.models.slow import feed_forward, gelu, mamba2, norm

P, N, SIZE = 4, 5, 6  # d = 12, of 3 heads


def block(**options: object) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(SIZE, state_size=N, head_size=P, **options)


@pytest.mark.parametrize("backend", ["auto", "reference", "blocked"])
def test_the_block_equals_the_equations_with_gradients(backend: str) -> None:
    m = block(backend=backend)
    shake(m)
    m.xs = torch.nn.Parameter(torch.randn(13, SIZE))  # of which the last 2 belong to no row
    m = m.double()
    lengths, some = [6, 0, 1, 4], torch.tensor([0, 5, 6, 9])
    rows = rows_of(torch.tensor(lengths))

    def want() -> Tensor:
        parts = m.xs[:11].split(lengths)
        return torch.cat([torch.stack(mamba2([*part], m)) for part in parts if len(part)])

    assert_same(m, m(m.xs, rows)[:11], want())
    assert_same(m, m(m.xs, rows, places_of(some, 13)), want()[some])


def row_states(model: Mamba4Rec, row: Tensor, length: int) -> list[Tensor]:
    xs = [norm(model.items.weight[i], model.norm) for i in row[:length]]
    for layer in model.layers:
        ys = zip(xs, mamba2(xs, layer.mamba), strict=True)
        xs = [feed_forward(norm(m + x, layer.norm), layer.feed_forward, gelu) for x, m in ys]
    return xs


def test_the_model_equals_the_equations_with_gradients() -> None:
    mamba = functools.partial(Mamba2, state_size=N, head_size=P, step_min=0.2, step_max=0.8)
    assert_equations(tiny(Mamba4Rec, mamba=mamba), row_states)


@pytest.mark.parametrize(("size", "state", "head"), [(16, 4, 8), (64, 32, 64), (24, 7, 6)])
def test_equals_transformers_chunked_products(size: int, state: int, head: int) -> None:
    """State dicts load both ways, and the products of chunks are the recurrence."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    ours = Mamba2(size, state, head_size=head, step_min=0.1, step_max=1.0)
    config = transformers.Mamba2Config(
        hidden_size=size,
        state_size=state,
        head_dim=head,
        num_heads=2 * size // head,
        n_groups=1,
        chunk_size=4,
        layer_norm_epsilon=1e-5,
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    shake(theirs, 0.1)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 11, size)
    rows = rows_of(torch.full((3,), 11))
    got, want = ours(x.flatten(0, 1), rows).view_as(x), theirs(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(got)
    for y in (got, want):
        (y * weight).sum().backward()
    others = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, others[name].grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("reinit", [True, False])
def test_the_start_is_mamba_ssms_but_for_the_maps(reinit: bool) -> None:
    m = built("mamba2", reinit_mamba=reinit).layers[0].mamba
    step = torch.nn.functional.softplus(m.dt_bias)
    assert ((step >= 1e-3) & (step <= 0.1)).all()
    assert ((m.A_log >= 0) & (m.A_log.exp() <= 16)).all()
    assert (m.D == 1).all()
    assert (m.norm.weight == 1).all()
    assert (m.in_proj.weight.std() < 0.03) == reinit  # PyTorch's draw has 0.14
