"""The Mamba block against transformers' own, with the same weights."""

import pytest
import torch

from sigma.models.mamba import Mamba
from sigma.ops import places_of, whole_rows

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def peer(block: Mamba, hidden: int, state: int, width: int, expand: int) -> torch.nn.Module:
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = transformers.MambaConfig(
        hidden_size=hidden,
        state_size=state,
        conv_kernel=width,
        expand=expand,
        time_step_rank=block.rank,
        use_mambapy=False,
    )
    mixer = MambaMixer(config, layer_idx=0)
    mixer.load_state_dict(block.state_dict())  # strict: names and shapes are the public ones
    return mixer


@pytest.mark.parametrize(
    ("hidden", "state", "width", "expand"), [(16, 4, 4, 2), (24, 8, 3, 1), (64, 32, 4, 2)]
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_outputs_and_gradients_equal_transformers(
    hidden: int, state: int, width: int, expand: int, backend: str
) -> None:
    torch.manual_seed(0)
    block = Mamba(hidden, state, width, expand, step_min=0.1, step_max=1.0, backend=backend)
    mixer = peer(block, hidden, state, width, expand)
    x = torch.randn(3, 11, hidden)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    rows = whole_rows(3, 11, x.device)
    y = block(ours.flatten(0, 1), rows).view_as(x)
    z = mixer(theirs)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-6)
    some = torch.tensor([3, 10, 11, 30])
    partial = block(x.flatten(0, 1), rows, places_of(some, 33))
    torch.testing.assert_close(partial, z.flatten(0, 1)[some], rtol=1e-4, atol=1e-6)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    others = dict(mixer.named_parameters())
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(
            parameter.grad, others[name].grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m
        )
