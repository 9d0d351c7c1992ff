"""Layers that several models use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Module):
    """Convolution over positions that looks back only, (B, L, D) -> (B, L, D).

    Position t sees t - k + 1 … t, so padding on the right never reaches a real item. Written as
    one matrix product over k shifted copies: ``nn.Conv1d`` wants channels first, which on the CPU
    costs more than the convolution.

    Args:
        size: D.
        width: k.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(size, size, width)  # holds the weight (D, D, k) and its initial draw

    def forward(self, states: Tensor) -> Tensor:
        length = states.shape[1]
        padded = F.pad(states, (0, 0, self.width - 1, 0))
        shifted = torch.cat([padded[:, i : i + length] for i in range(self.width)], dim=-1)
        weight = self.conv.weight.permute(0, 2, 1).flatten(1)
        return F.linear(shifted, weight, self.conv.bias)
