"""Layers that several models use."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Positive, Share
from sigma.models.base import Model
from sigma.ops import Places, Rows, causal_conv, gru, take, unfold
from sigma.ops.rows import typed
from sigma.ops.scores import TiedScores


def clear_padding(table: nn.Embedding) -> None:
    """Zero the row of padding, if the table has one; it never gets a gradient."""
    if table.padding_idx is not None:
        with torch.no_grad():
            table.weight[table.padding_idx] = 0


class TiedItems(Model):
    """Scores by inner product with the item table ``items``, (K + 1, D), from N(0, 0.02).

    Row 0 (padding) is 0 and gets no gradient; ``extra`` rows are after item K, as a mask token's.

    Args:
        temperature: divides the scores, of loss and ranking alike; None is 1.
        normalize: states and items are taken at length 1, so that scores are cosines over the
            temperature (Meta's HSTU and SASRec: 0.05). None is false.

    Attributes:
        padding_item: row 0 is an item's, as in RecBole: see ``draw_padding``.
    """

    padding_item: bool = False

    def __init__(
        self,
        num_items: int,
        hidden_size: Count = 64,
        dropout: Share = 0.2,
        name: str = "",
        extra: int = 0,
        temperature: Positive | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__()
        self.name = name or type(self).__name__.lower()
        self.items = nn.Embedding(num_items + 1 + extra, hidden_size, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        clear_padding(self.items)
        self.dropout = Dropout(dropout)
        self.head: dict[str, Any] = {"temperature": temperature, "normalize": normalize}

    @property
    def tied(self) -> TiedScores:
        """Inner products with the table, as they are."""
        table = self.items.weight
        return TiedScores(table[1:], others=table[:1] if self.padding_item else None)

    def item_rows(self) -> dict[str, int]:
        return {"items.weight": 1}

    def draw_padding(self) -> None:
        """RecBole's padding: drawn like an item, and a class that is never a target.

        Reading it passes no gradient; the softmax's does, so it moves at every step.
        """
        self.padding_item = True
        nn.init.normal_(self.items.weight[0].detach(), std=0.02)

    @property
    def logits(self) -> TiedScores:
        return self.tied.shaped(**self.head)


def at(states: Tensor, places: Places | None) -> Tensor:
    """States (M, D) of (T, D) at places; all of them without."""
    return states if places is None else take(states, places)


def encode(layers: Iterable[nn.Module], states: Tensor, rows: Rows, places: Places) -> Tensor:
    """(T, D) through the layers, the last of which works at ``places`` alone, (M, D)."""
    *inner, last = layers
    for layer in inner:
        states = layer(states, rows)
    return last(states, rows, places)


class Dropout(nn.Dropout):
    """PyTorch's dropout, on the CPU from 16 random bits an element instead of a float each.

    There ``F.dropout`` is most of what a small model costs. The probability is rounded to a
    multiple of 2^-16, and what stays is scaled by that.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        steps = min(round(self.p * 2**16), 2**16 - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        # In float: comparing and multiplying with bool tensors is several times slower.
        mask = bits.to(torch.promote_types(x.dtype, torch.float32)).ge_(steps - 2**15)
        return x * typed(mask.mul_(1 / (1 - steps / 2**16)), x.dtype)


def spectrum(x: Tensor, norm: str = "backward") -> Tensor:
    """Fourier transform along axis 1; in single precision at least, as there is none in half."""
    return torch.fft.rfft(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, norm=norm)


def init_normal(module: nn.Module) -> None:
    """RecBole's start, for ``nn.Module.apply``: maps and tables N(0, 0.02), norms 1, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        clear_padding(module)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class CausalConv1d(nn.Module):
    """Convolution over t - width + 1 … t of a row, (T, D) -> (T, D)."""

    def __init__(self, size: int, width: int, *, depthwise: bool = False) -> None:
        super().__init__()
        self.width = width
        self.depthwise = depthwise
        # Holds the weight, (D, 1 or D, k), and its initial draw; its own forward is not used.
        self.conv = nn.Conv1d(size, size, width, groups=size if depthwise else 1)

    def forward(self, states: Tensor, rows: Rows) -> Tensor:
        assert self.conv.bias is not None
        if self.depthwise:
            return causal_conv(states, self.conv.weight[:, 0], self.conv.bias, rows)
        weight = self.conv.weight.permute(0, 2, 1).flatten(1)  # (D, k D)
        return F.linear(unfold(states, rows, self.width), weight, self.conv.bias)


class GRU(nn.Module):
    """``torch.nn.GRU`` on packed rows, (T, D) -> (T, G), arguments and parameters the same.

    Equations as in ``sigma.ops.gru``. Not a subclass, which PyTorch's compiler would refuse.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        torchs = nn.GRU(*args, **options)
        self.num_layers = torchs.num_layers
        for name, weight in torchs.named_parameters():
            self.register_parameter(name, weight)

    def forward(self, states: Tensor, rows: Rows) -> Tensor:
        weights = dict(self.named_parameters())
        for layer in range(self.num_layers):
            b, c = weights.get(f"bias_ih_l{layer}"), weights.get(f"bias_hh_l{layer}")
            gates = F.linear(states, weights[f"weight_ih_l{layer}"], b)  # (T, 3 G)
            states = gru(gates, weights[f"weight_hh_l{layer}"], c, rows)
        return states
