"""A layer of attention and feed-forward, on rows of several lengths, against torch's own."""

import pytest
import torch
from torch import nn

from sigma.models.transformer import Block, FeedForward, SelfAttention
from sigma.ops import places_of, rows_of
from tests.models.checks import shake


def torch_layer(ours: Block, heads: int, activation: str) -> nn.TransformerEncoderLayer:
    """Torch's own with the same weights."""
    attention, feed_forward = ours.attention, ours.feed_forward
    inner, size = feed_forward.widen.weight.shape
    theirs = nn.TransformerEncoderLayer(
        size, heads, inner, 0.0, activation, layer_norm_eps=1e-12, batch_first=True
    ).double()
    maps = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
    theirs.self_attn.out_proj.load_state_dict(attention.out.state_dict())
    theirs.norm1.load_state_dict(attention.norm.state_dict())
    theirs.linear1.load_state_dict(feed_forward.widen.state_dict())
    theirs.linear2.load_state_dict(feed_forward.narrow.state_dict())
    theirs.norm2.load_state_dict(feed_forward.norm.state_dict())
    return theirs


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_layer_is_torchs_encoder_layer(activation: str, causal: bool) -> None:
    ours = Block(
        SelfAttention(6, 3, dropout=0.0, causal=causal),
        FeedForward(6, 10, dropout=0.0, activation=activation),
    )
    shake(ours)
    theirs = torch_layer(ours.double(), 3, activation)
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 1, 3, 4])
    is_real = torch.arange(5) < lengths[:, None]
    later = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    got = ours(x[is_real], rows_of(lengths))
    want = theirs(x, src_mask=later, src_key_padding_mask=~is_real)[is_real]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(got)
    ours_x, theirs_x = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(ours_x, theirs_x, rtol=1e-8, atol=1e-10)
    some = torch.tensor([1, 4, 5, 6, 12])
    partial = ours(x[is_real], rows_of(lengths), places_of(some, 13))
    torch.testing.assert_close(partial, want[some], rtol=1e-9, atol=1e-10)
