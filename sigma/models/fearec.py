"""FEARec: Frequency Enhanced Hybrid Attention Network for Sequential Recommendation.

Du et al., SIGIR 2023.

Symbols: B rows, N positions (always max_length), M = N // 2 + 1 frequencies, D hidden size, H
heads, d = D / H, K items, P learned positions, F the Fourier transform along positions, W_i the
window of frequencies of layer i, ρ spatial_ratio, ^* the complex conjugate.

    X    = dropout(LayerNorm(E[items] + P))                       (B, N, D)
    Q    = X W_Q + b_Q; K and V likewise                          (B, N, D)
    R    = F^-1(W_i mean over channels of F(Q) ⊙ F(K)^*)          (B, N), R[τ] ~ mean Q[s + τ] K[s]
    T    = the int(topk_factor ln N) delays of largest R          in training of R's batch mean
    w    = softmax of R over T, 0 elsewhere                       (B, N)
    A[t] = Σ_τ w[τ] V[t + τ mod N], as F^-1(F(w)^* ⊙ F(V))        (B, N, D)
    S    = causal softmax(Q~ K~^T / sqrt(d)) V~ over real items   Q~ = F^-1(W_i F(Q)), ...; by heads
    X    = LayerNorm(X + dropout(((1 - ρ) A + ρ S) W_O + b_O))    num_layers times,
    X    = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))        one after the other
    score of item k = X[n_u] · E[k]

R is a mean over all channels, and a shift of R at all delays leaves w as it is, so heads and the
biases of Q and K matter to S alone. Delays are the batch's in training and each row's own in
evaluation: the two differ even without dropout, by the authors' design. R and A turn round at the
end of the row and read later items and padding, so the model is not causal, and its scores depend
on N.

The ramp: layer i of n (from 0) sees the frequencies int(M (1 - w) - i s) … int(M - i s) - 1, high
ones first; w = global_ratio and s = floor(M (1 - w) / (n - 1)), or w = 1 / n and s = M / n where
global_ratio <= 1 / n.

``contrast`` compares states a, b (m samples each) of: the step's own pass and a second one with
other dropout (``un``), the step's own and another sequence's with the same target (``su``), both
(``us``), or the second pass and the other sequence (``us_x``, the authors' choice). The term is
    weight · mean over the 2 m states z of -log(exp(z · z' / τ) / Σ exp(z · z" / τ)),
z' the partner of z, z" all but z itself. Rows of one target stay each other's negatives, as in the
authors' code. ``frequency_weight`` adds mean |F(a) - F(b)| along the hidden axis (0.1 in the
authors' code, whose published command leaves it off).

Departures from the authors' code: odd N and a single layer work; S always sees the window (their
``std=True``, as published; RecBole's default leaves Q, K, V whole), ρ = 0 is ``dual_domain=False``;
the frequency term has the pairs of ``contrast`` instead of its own; the item row of padding is 0,
where RecBole's stays at its random draw.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.base import Sequences
from sigma.models.layers import init_normal, spectrum
from sigma.models.transformer import FeedForward, PositionedItems, SelfAttention
from sigma.ops import Rows, attend, packed, padded, padded_places, take, whole_rows

PAIRS: dict[str | None, list[tuple[str, str]]] = {
    None: [],
    "un": [("own", "view")],
    "su": [("own", "twin")],
    "us": [("own", "view"), ("own", "twin")],
    "us_x": [("view", "twin")],
}


def frequency_window(length: int, layer: int, num_layers: int, ratio: float) -> tuple[int, int]:
    """The ramp: first frequency a layer sees, and one past the last.

    Args:
        length: N.
        layer: i.
        num_layers: n.
        ratio: global_ratio.

    Raises:
        UserError: ratio outside (0, 1], or no frequency left.
    """
    if not 0 < ratio <= 1:
        raise UserError(f"model.global_ratio={ratio} must be above 0 and at most 1.")
    m = length // 2 + 1
    if ratio > 1 / num_layers:
        width, step = ratio, m * (1 - ratio) // max(num_layers - 1, 1)
    else:
        width, step = 1 / num_layers, m / num_layers
    left, right = int(m * (1 - width) - layer * step), int(m - layer * step)
    if left >= right:
        raise UserError(
            f"model.num_layers={num_layers} leaves layer {layer + 1} none of the {m} frequencies "
            f"of model.max_length={length}; use fewer layers or a larger model.global_ratio."
        )
    return left, right


def info_nce(a: Tensor, b: Tensor, temperature: float, similarity: str) -> Tensor:
    """Each of the 2 M states picks its partner out of all others; mean cross entropy.

    Args:
        a: (M, D).
        b: (M, D), row by row the partners of ``a``.
        temperature: τ.
        similarity: ``dot`` or ``cos``.
    """
    states = torch.cat([a, b])
    if similarity == "cos":
        states = F.normalize(states, dim=-1)
    index = torch.arange(len(states), device=states.device)
    scores = (states @ states.T / temperature).masked_fill(index[:, None] == index, -math.inf)
    return F.cross_entropy(scores, index.roll(len(a)))


class HybridAttention(SelfAttention):
    """LayerNorm(X + dropout(((1 - ρ) A + ρ S) W_O + b_O)), (B, N, D) -> (B, N, D).

    Args:
        size: D.
        num_heads: H.
        dropout: of the output.
        attention_dropout: of S's weights.
        window: as from ``frequency_window``.
        topk_factor: delays, in units of ln N.
        spatial_ratio: ρ.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        dropout: float,
        attention_dropout: float,
        window: tuple[int, int],
        topk_factor: float,
        spatial_ratio: float,
    ) -> None:
        super().__init__(size, num_heads, dropout, attention_dropout)
        self.window = window
        self.topk_factor = topk_factor
        self.spatial_ratio = spatial_ratio

    def delay_weights(self, correlation: Tensor) -> Tensor:
        """R (B, N) -> w (B, N)."""
        ranked = correlation.mean(0, keepdim=True) if self.training else correlation
        top = ranked.topk(int(self.topk_factor * math.log(ranked.shape[1]))).indices
        chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, top, True)
        return correlation.masked_fill(~chosen, -math.inf).softmax(-1)

    def spatial(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, places: Tensor | None, size: int
    ) -> Tensor:
        """S, (B, N, D) -> (B, N, D), or (M, D) at places: keys are a row's real items alone."""
        k, v = (self.heads(packed(x, rows, size)) for x in (k, v))
        number, n = q.shape[:2]
        if places is None:  # a query of padding sees the whole row
            first = rows.offsets[:-1, None] + torch.arange(n, device=q.device)
            grid = whole_rows(number, n, q.device).offsets
            out = attend(
                self.heads(q.flatten(0, 1)), k, v, rows, first.flatten(), True,
                self.weights_dropout(), grid,
            )  # fmt: skip
        else:
            q = take(q.flatten(0, 1), padded_places(rows, places, n))
            out = attend(self.heads(q), k, v, rows, places, True, self.weights_dropout())
        return out.flatten(1) if places is not None else out.flatten(1).view(number, n, -1)

    def forward(  # type: ignore[override]  # states are padded
        self, states: Tensor, rows: Rows, size: int, places: Tensor | None = None
    ) -> Tensor:
        """Attend in both domains, (B, N, D) -> (B, N, D), or (M, D) at places.

        Args:
            states: (B, N, D).
            rows: of the packed batch; read for S alone.
            size: its T.
            places: (M,) in it; None is every cell of the states.
        """
        n, (left, right) = states.shape[1], self.window
        at = None if places is None else padded_places(rows, places, n)

        def read(x: Tensor) -> Tensor:
            return x if at is None else take(x.flatten(0, 1), at)

        q, k, v = (spectrum(f(states)) for f in (self.query, self.key, self.value))
        q, k = q[:, left:right], k[:, left:right]
        beyond = (left, n // 2 + 1 - right)  # frequencies outside the window are zero
        # The mean before the inverse transform: one short signal a row instead of D.
        correlation = torch.fft.irfft(F.pad((q * k.conj()).mean(-1), beyond), n=n)
        weights = spectrum(self.delay_weights(correlation))
        mixed = read(torch.fft.irfft(weights.conj()[:, :, None] * v, n=n, dim=1))
        if self.spatial_ratio:
            banded = (F.pad(x, (0, 0, *beyond)) for x in (q, k, v[:, left:right]))
            q, k, v = (torch.fft.irfft(x, n=n, dim=1) for x in banded)
            spatial = self.spatial(q, k, v, rows, places, size)
            mixed = (1 - self.spatial_ratio) * mixed + self.spatial_ratio * spatial
        mixed = self.dropout(self.out(mixed.to(states.dtype)))
        return self.norm(read(states) + mixed)


class HybridLayer(nn.Module):
    """Attention in both domains, then feed-forward; arguments as ``HybridAttention.forward``."""

    def __init__(self, attention: HybridAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(
        self, states: Tensor, rows: Rows, size: int, places: Tensor | None = None
    ) -> Tensor:
        return self.feed_forward(self.attention(states, rows, size, places))


class FEARec(PositionedItems):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        max_length: N.
        hidden_size: D.
        num_layers: stacked layers.
        num_heads: H, divides D.
        inner_size: width of the feed-forward layers.
        dropout: of embeddings and layer outputs.
        attention_dropout: of S's weights.
        activation: ``gelu`` or ``relu``.
        global_ratio: share of the frequencies a layer sees; 1 is no ramp.
        spatial_ratio: ρ; 0 leaves S out.
        topk_factor: delays, in units of ln N.
        contrast: ``un``, ``su``, ``us``, ``us_x`` or None. All but ``un`` need
            ``objective=next_item_twins``.
        similarity: ``dot`` or ``cos``, of contrasted states.
        temperature: τ.
        contrast_weight: of pairs of two passes (the authors' lmd).
        semantic_weight: of pairs with another sequence (lmd_sem).
        frequency_weight: of the frequency term.
        name: what tables call the model.

    Raises:
        UserError: impossible setting.
    """

    reads_batch = True  # delays shared by the batch, and negatives from it

    def __init__(
        self,
        num_items: int,
        max_length: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        inner_size: int = 256,
        dropout: float = 0.3,
        attention_dropout: float = 0.3,
        activation: str = "gelu",
        global_ratio: float = 1.0,
        spatial_ratio: float = 0.0,
        topk_factor: float = 1.0,
        contrast: str | None = None,
        similarity: str = "dot",
        temperature: float = 1.0,
        contrast_weight: float = 0.1,
        semantic_weight: float = 0.1,
        frequency_weight: float = 0.0,
        name: str = "fearec",
    ) -> None:
        super().__init__(num_items, max_length, hidden_size, dropout, name)
        if not 1 <= int(topk_factor * math.log(max_length)) <= max_length:
            raise UserError(
                f"model.topk_factor={topk_factor} times ln(model.max_length={max_length}) must be "
                "between 1 delay and max_length."
            )
        if not 0 <= spatial_ratio <= 1:
            raise UserError(f"model.spatial_ratio={spatial_ratio} must be between 0 and 1.")
        if contrast not in PAIRS:
            raise UserError(
                f"Unknown model.contrast '{contrast}'; choose un, su, us, us_x or null."
            )
        if similarity not in ("dot", "cos"):
            raise UserError(f"Unknown model.similarity '{similarity}'; choose dot or cos.")
        if temperature <= 0:
            raise UserError(f"model.temperature={temperature} must be above 0.")
        if frequency_weight and contrast is None:
            raise UserError(
                f"model.frequency_weight={frequency_weight} needs model.contrast, whose pairs it "
                "compares; choose un, su, us or us_x."
            )
        self.max_length = max_length
        self.spatial_ratio = spatial_ratio
        self.contrast = contrast
        self.similarity = similarity
        self.temperature = temperature
        self.pair_weight = {"view": contrast_weight, "twin": semantic_weight}
        self.frequency_weight = frequency_weight
        self.layers = nn.ModuleList()
        for i in range(num_layers):
            window = frequency_window(max_length, i, num_layers, global_ratio)
            attention = HybridAttention(
                hidden_size,
                num_heads,
                dropout,
                attention_dropout,
                window,
                topk_factor,
                spatial_ratio,
            )
            feed_forward = FeedForward(hidden_size, inner_size, dropout, activation)
            self.layers.append(HybridLayer(attention, feed_forward))
        self.apply(init_normal)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        n, size = rows.longest, items.shape[0]
        if n != self.max_length:
            raise UserError(
                f"FEARec reads whole rows of model.max_length={self.max_length} positions and got "
                f"{n}; set it to the data's dataset.max_length."
            )
        states = self.embedded_padded(padded(items, rows, n))
        for layer in self.layers[:-1]:
            states = layer(states, rows, size)
        return self.layers[-1](states, rows, size, places)

    def extra_loss(
        self, items: Tensor, rows: Rows, places: Tensor, states: Tensor, twins: Sequences | None
    ) -> Tensor | None:
        """Contrastive and frequency terms of a training batch, a scalar; None where all are off.

        Args:
            items: (T,), and
            rows: of the M samples.
            places: (M,) their last places.
            states: (M, D), their states in the step's own pass.
            twins: M other sequences with the same targets, with ``objective=next_item_twins``.

        Raises:
            UserError: the terms need twins and the batch has none.
        """
        pairs = [
            (a, b) for a, b in PAIRS[self.contrast] if self.pair_weight[b] or self.frequency_weight
        ]
        if not pairs:
            return None
        loss, names = states.new_zeros(()), {name for pair in pairs for name in pair}
        encoded = {"own": states}
        # Each in a pass of its own, as in the authors' code: the rows of a pass share their delays.
        if "view" in names:
            encoded["view"] = self(items, rows, places)
        if "twin" in names:
            if twins is None:
                raise UserError(
                    f"model.contrast={self.contrast} compares sequences with the same target; set "
                    "objective=next_item_twins, or model.contrast to un or null."
                )
            encoded["twin"] = self(*twins, twins[1].offsets[1:] - 1)
        for a, b in pairs:
            first, second, weight = encoded[a], encoded[b], self.pair_weight[b]
            if weight:
                loss = loss + weight * info_nce(first, second, self.temperature, self.similarity)
            if self.frequency_weight:
                gap = spectrum(first - second, norm="ortho").abs().mean()
                loss = loss + self.frequency_weight * gap
        return loss
