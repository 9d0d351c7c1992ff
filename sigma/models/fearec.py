"""FEARec: Frequency Enhanced Hybrid Attention Network for Sequential Recommendation.

Du et al., SIGIR 2023.

Symbols: N positions (always max_length), M = N // 2 + 1 frequencies, H heads, d = D / H, F the
Fourier transform along positions, W_i the window of frequencies of layer i, ρ spatial_ratio, ^* the
complex conjugate.

    X    = dropout(LayerNorm(E[items] + P))                       (B, N, D)                     (1)
    Q    = X W_Q + b_Q; K and V likewise                          (B, N, D)                     (2)
    R    = F^-1(W_i mean over channels of F(Q) ⊙ F(K)^*)          (B, N)                        (3)
    T    = the int(topk_factor ln N) delays of largest R          in training of R's batch mean (4)
    w    = softmax of R over T, 0 elsewhere                       (B, N)                        (5)
    A[t] = Σ_τ w[τ] V[t + τ mod N], as F^-1(F(w)^* ⊙ F(V))        (B, N, D)                     (6)
    S    = causal softmax(Q~ K~^T / sqrt(d)) V~ over real items   Q~ = F^-1(W_i F(Q)), ...      (7)
    X    = LayerNorm(X + dropout(((1 - ρ) A + ρ S) W_O + b_O))    num_layers times,             (8)
    X    = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))        one after the other           (9)
    score of item k = X[n_u] · E[k]

R[τ] is about the mean of Q[s + τ] · K[s] over all channels, and a shift of R at all delays leaves w
as it is, so heads and the biases of Q and K matter to S alone. Delays are the batch's in training
and each row's own in evaluation: the two differ even without dropout, by the authors' design. R and
A turn round at the end of the row and read later items and padding, so the model is not causal, and
its scores depend on N.

The ramp: layer i of n (from 0) sees the frequencies int(M (1 - w) - i s) … int(M - i s) - 1, high
ones first; w = global_ratio and s = floor(M (1 - w) / (n - 1)), or w = 1 / n and s = M / n where
global_ratio <= 1 / n.

Departures from the authors' code: odd N and a single layer work; S always sees the window (their
``std=True``, as published; RecBole's default leaves Q, K, V whole), ρ = 0 is ``dual_domain=False``;
the frequency term has the pairs of ``contrast`` instead of its own.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.arguments import Count
from sigma.errors import UserError
from sigma.models.contrast import Contrast
from sigma.models.layers import init_normal, spectrum
from sigma.models.transformer import SelfAttention
from sigma.ops import Rows, attend, packed, padded, padded_places, take, whole_rows


def frequency_windows(length: int, num_layers: int, ratio: float) -> list[tuple[int, int]]:
    """The ramp: first frequency each layer sees, and one past the last, of rows of N positions."""
    if not 0 < ratio <= 1:
        raise ValueError(f"global_ratio={ratio} must be above 0 and at most 1.")
    m = length // 2 + 1
    if ratio > 1 / num_layers:
        width, step = ratio, m * (1 - ratio) // max(num_layers - 1, 1)
    else:
        width, step = 1 / num_layers, m / num_layers
    windows = [(int(m * (1 - width) - i * step), int(m - i * step)) for i in range(num_layers)]
    if any(left >= right for left, right in windows):
        raise ValueError(
            f"num_layers={num_layers} leaves a layer none of the {m} frequencies of "
            f"max_length={length}; use fewer layers or a larger global_ratio."
        )
    return windows


class HybridAttention(SelfAttention):
    """Equations 2 to 8, (B, N, D) -> (B, N, D), or (M, D) at places; arguments as ``FEARec``."""

    def __init__(
        self,
        size: int,
        num_heads: Count,
        window: tuple[int, int],
        topk_factor: float,
        spatial_ratio: float,
        **dropouts: Any,
    ) -> None:
        super().__init__(size, num_heads, **dropouts)
        self.window = window
        self.topk_factor = topk_factor
        self.spatial_ratio = spatial_ratio

    def delay_weights(self, correlation: Tensor) -> Tensor:
        """R (B, N) -> w (B, N)."""
        ranking = correlation.mean(0, keepdim=True) if self.training else correlation
        top = ranking.topk(int(self.topk_factor * math.log(ranking.shape[1]))).indices  # eq. 4
        mask = torch.zeros_like(ranking, dtype=torch.bool).scatter(1, top, True)
        return correlation.masked_fill(~mask, -math.inf).softmax(-1)  # eq. 5

    def spatial(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, places: Tensor | None, size: int
    ) -> Tensor:
        """S, (B, N, D) -> (B, N, D), or (M, D) at places: keys are a row's real items alone."""
        k, v = (self.heads(packed(x, rows, size)) for x in (k, v))  # (T, H, d)
        number, n = q.shape[:2]
        if places is not None:
            q = self.heads(take(q.flatten(0, 1), padded_places(rows, places, n)))
            mixed = attend(q, k, v, rows, places, True, self.weights_dropout())  # eq. 7
            return mixed.flatten(1)
        # A query of padding sees the whole row.
        q = self.heads(q.flatten(0, 1))
        index = (rows.offsets[:-1, None] + torch.arange(n, device=q.device)).flatten()
        grid = whole_rows(number, n, q.device).offsets
        mixed = attend(q, k, v, rows, index, True, self.weights_dropout(), grid)  # eq. 7
        return mixed.flatten(1).view(number, n, -1)

    def forward(  # type: ignore[override]  # states are padded
        self, states: Tensor, rows: Rows, size: int, places: Tensor | None = None
    ) -> Tensor:
        """``rows``, ``size`` (T) and ``places`` (M,) are the packed batch's; None is all cells."""
        n, (left, right) = states.shape[1], self.window
        cells = None if places is None else padded_places(rows, places, n)

        def read(x: Tensor) -> Tensor:
            return x if cells is None else take(x.flatten(0, 1), cells)

        q, k, v = (spectrum(f(states)) for f in (self.query, self.key, self.value))  # eq. 2
        q, k = q[:, left:right], k[:, left:right]
        beyond = (left, n // 2 + 1 - right)  # frequencies outside the window are zero
        # The mean before the inverse transform: one short signal a row instead of D.
        correlation = torch.fft.irfft(F.pad((q * k.conj()).mean(-1), beyond), n=n)  # eq. 3: (B, N)
        weights = spectrum(self.delay_weights(correlation)[:, :, None])  # F(w): (B, M, 1)
        mixed = read(torch.fft.irfft(weights.conj() * v, n=n, dim=1))  # eq. 6
        if self.spatial_ratio:
            banded = (F.pad(x, (0, 0, *beyond)) for x in (q, k, v[:, left:right]))
            q, k, v = (torch.fft.irfft(x, n=n, dim=1) for x in banded)  # Q~, K~, V~
            spatial = self.spatial(q, k, v, rows, places, size)
            mixed = (1 - self.spatial_ratio) * mixed + self.spatial_ratio * spatial
        mixed = self.dropout(self.out(mixed.to(states.dtype)))
        return self.norm(read(states) + mixed)  # eq. 8


class FEARec(Contrast):
    """Packed items (T,) -> states (M, D) at places; other arguments as in its bases.

    Args:
        max_length: N.
        global_ratio: share of the frequencies a layer sees; 1 is no ramp.
        spatial_ratio: ρ; 0 leaves S out.
        topk_factor: delays, in units of ln N.
    """

    reads_batch = True  # delays shared by the batch, and negatives from it

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        num_layers: Count = 2,
        global_ratio: float = 1.0,
        spatial_ratio: float = 0.0,
        topk_factor: float = 1.0,
        padding_item: bool | None = None,
        **options: Any,
    ) -> None:
        if not 1 <= int(topk_factor * math.log(max_length)) <= max_length:
            raise ValueError(
                f"topk_factor={topk_factor} times ln(max_length={max_length}) must be between 1 "
                "delay and max_length."
            )
        if not 0 <= spatial_ratio <= 1:
            raise ValueError(f"spatial_ratio={spatial_ratio} must be between 0 and 1.")
        windows = frequency_windows(max_length, num_layers, global_ratio)

        def attention(size: int, heads: int, **dropouts: Any) -> HybridAttention:
            window = windows.pop(0)
            return HybridAttention(size, heads, window, topk_factor, spatial_ratio, **dropouts)

        super().__init__(num_items, max_length, attention, num_layers=num_layers, **options)
        self.max_length = max_length
        self.apply(init_normal)
        if padding_item:
            self.draw_padding()

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        n, size = rows.longest, items.shape[0]
        if n != self.max_length:
            raise UserError(
                f"FEARec reads whole rows of max_length={self.max_length} positions and got {n}; "
                "it must be the data's."
            )
        states = self.padded_embedding(padded(items, rows, n))  # eq. 1
        for layer in self.layers[:-1]:
            states = layer(states, rows, size)
        return self.layers[-1](states, rows, size, places)
