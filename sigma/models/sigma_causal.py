"""A causal SIGMA: the partial flip of each prefix, at all positions in linear time.

SIGMA (``sigma.models.sigma``) reads a history of n_u items once flipped, so its state at an earlier
item has seen later ones, and training at all positions would need a pass a prefix. Here the state
at item m is that of items 1 … m alone, whose first m - r are flipped. Two things differ from SIGMA:

* The block is Mamba-2 (``sigma.models.mamba2``): with one decay for all states of a head, a prefix
  read backwards is a weighted sum, which grows by a term an item.
* The flip is behind the convolutions, of the block and of the gate: both directions scan the same
  x, B, C, Δ, and G is one gate. Of width k, the gate's convolution would see the flip for r < k.

Of one head, with n = max(m - r, 0), read in the order n … 1, n + 1 … m:

    σ_j  = Σ_i Δ_i, i = 1 … j                                                     (1)
    h_n  = Σ_j exp((σ_n - σ_j) A) Δ_j x_j B_j, j = 1 … n       read 1 … n         (2)
    s_n  = Σ_j exp(σ_{j-1} A) Δ_j x_j B_j, j = 1 … n           read n … 1         (3)
    y_m  = h_m C_m + D x_m                                                        (4)
    y'_m = y_m + exp((σ_m - σ_n) A) (s_n - h_n) C_m                               (5)
    M    = RMSNorm(y ⊙ SiLU(z)) W_out,  M' = RMSNorm(y' ⊙ SiLU(z)) W_out          (6)
    M^   = M + M' + G(H0) ⊙ (M + M')                                              (7)

and all else as in SIGMA from its eq. 7 on. A stack reads causal states: its second layer flips
those that the first one gave at each item.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.arguments import Count
from sigma.models.layers import at
from sigma.models.mamba import MambaFactory, MambaStack
from sigma.models.mamba2 import Mamba2
from sigma.models.sigma import SigmaLayer
from sigma.ops import Places, Rows, delay, selective_scan
from sigma.ops.rows import typed


def change_by_flip(
    block: Mamba2, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, rows: Rows, r: int
) -> Tensor:
    """y' - y of eq. 5, (T, d), from what the block scans."""
    A = block.decay()
    x, dt = typed(x, A.dtype), typed(dt, A.dtype)
    no, ones = torch.zeros_like(A), torch.ones_like(dt)
    total = selective_scan(  # eq. 1: (T, H), a scan that forgets nothing
        *(ones, dt, no[:, None], ones[:, :1], ones[:, :1], no, None, block.dt_bias, rows),
        block.backend,
    )
    early = torch.exp((total - F.softplus(dt + block.dt_bias)) * A)  # exp(σ_{j-1} A)
    # What stands at n = m - r is scanned r places later, so that C_m reads h_n and s_n at place m.
    late = delay(torch.cat([dt, early, total], dim=-1), rows, r)
    (dt, early, passed), x, B = late.chunk(3, dim=-1), delay(x, rows, r), delay(B, rows, r)
    forward = block.scan(x, dt, A, B, C, no, None, rows)  # eq. 2: h_n C_m
    backward = block.scan(x * block.channels(early), dt, no, B, C, no, None, rows)  # eq. 3: s_n C_m
    return (backward - forward) * block.channels(torch.exp((total - passed) * A))  # eq. 5


class CausalSigmaLayer(SigmaLayer):
    """``SigmaLayer`` with the flip of each prefix; arguments as there.

    Args:
        mamba: of Mamba-2 blocks.
        r: at least 1, so that item m is read last, and its C reads.
    """

    def __init__(self, size: int, mamba: MambaFactory, *, r: Count = 5, **options: Any) -> None:
        super().__init__(size, mamba, r=r, **options)
        if not isinstance(self.mamba, Mamba2):
            raise ValueError("mamba must be of Mamba-2 blocks, which read a prefix backwards.")

    def readings(
        self, block: Any, states: Tensor, rows: Rows, places: Places | None
    ) -> tuple[Tensor, Tensor]:
        """M and M', (M, D) each."""
        x, dt, B, C = block.inputs(states, rows)
        y = block.scan(x, dt, block.decay(), B, C, block.D, None, rows)  # eq. 4: (T, d)
        open_gate = F.silu(block.gate(states, places))
        forward = block.close(at(y, places) * open_gate)  # eq. 6
        if not self.partial_flip or rows.longest <= self.r + 1:  # no row has two to swap
            return forward, forward
        flipped = y + change_by_flip(block, x, dt, B, C, rows, self.r)
        return forward, block.close(at(flipped, places) * open_gate)

    def both_directions(self, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        """M^ of eq. 7."""
        forward, flipped = self.readings(self.mamba, states, rows, places)
        if self.flipped_mamba is not None:
            flipped = self.readings(self.flipped_mamba, states, rows, places)[1]
        m = forward + flipped
        return m if self.gate is None else m + self.gate(states, rows, places) * m  # eq. 7


class CausalSigma(MambaStack):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``SigmaLayer``."""

    causal = True
    layer_type = CausalSigmaLayer
