"""MoEMaTrRec: Mamba and self-attention side by side, mixed by one gate a history.

Alokam Gnaneswara Sai, "State-Space Models for Large Sequence Modeling in Sequential
Recommendation", 2024; the class ``SASmambaRec`` of its public code.

All of (T, D) but g and E; the leaking form reads the padding, and is (B, L, D).

    X = dropout(sqrt(D) E[items] + P)                                                           (1)
    A = LayerNorm(dropout(MHA(X)) + X)                                                          (2)
    M = Mamba(X)                                                                                (3)
    g = sigmoid(w · mean over positions of X + b)                 (T, 1)                        (4)
    C = g M + (1 - g) A                                                                         (5)
    H = LayerNorm(dropout(ReLU(C W1 + b1) W2 + b2) + C)                                         (6)
    score of item k = H[n_u] · E[k]

Trained at every position at once with binary cross entropy and one uniform negative a position.

**The leak.** The authors' attention has no mask and their g averages the whole row, so the state at
position t has already seen item t + 1, which training asks it to predict. The default here is the
honest model: attention from t sees 0 … t, and g at t is that of the mean over 0 … t. ``leak=True``
is the authors': attention and mean over all L positions, padding among them. It warns, and is let
through by ``objective=all_positions``. The state read out for the next item is the same function of
the parameters either way when the row is full; the leak is one of training.

As in the authors' code: every parameter of two or more dimensions starts Xavier normal (see
``sigma.models.recmamba``), and the attention weights drop out at the same rate.

Departures from the authors' code: padding on the right where it is read, positions counted from the
first item kept, and padding zero, as in ``sigma.models.recmamba``; layer norms add 1e-12, not 1e-6,
to the variance. Their results on LFM-1b are of an earlier version, which is not rebuilt here.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from sigma.arguments import Count, Share
from sigma.models.mamba import MambaFactory
from sigma.models.recmamba import init_xavier
from sigma.models.transformer import FeedForward, PositionedItems, SelfAttention
from sigma.ops import Rows, attend, padded, padded_places, places_of, take, whole_rows

log = logging.getLogger(__name__)


class MoEMaTrRec(PositionedItems):
    """Packed items (T,) -> states (M, D) at places; arguments as above and in the base."""

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        mamba: MambaFactory,
        hidden_size: Count = 32,
        num_heads: Count = 1,
        dropout: Share = 0.5,
        leak: bool = False,
        **options: Any,
    ) -> None:
        options |= {"hidden_size": hidden_size, "dropout": dropout}
        super().__init__(num_items, max_length, **options)
        self.leak = leak
        self.causal = not leak
        self.leaks_on_purpose = leak
        self.mamba = mamba(hidden_size)
        self.attention = SelfAttention(
            hidden_size, num_heads, dropout=dropout, attention_dropout=dropout, causal=not leak
        )
        self.gate = nn.Linear(hidden_size, 1)
        self.feed_forward = FeedForward(
            hidden_size, 4 * hidden_size, dropout=dropout, activation="relu"
        )
        init_xavier(self)
        # As Xavier starts torch's MHA: queries, keys and values one (3 D, D) matrix, no biases.
        for layer in (self.attention.query, self.attention.key, self.attention.value):
            nn.init.xavier_normal_(layer.weight, gain=math.sqrt(0.5))
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention.out.bias)
        if leak:
            log.warning("leak=True: in training, this model sees the items it must predict.")

    def mean(self, states: Tensor, rows: Rows) -> Tensor:
        """What the gate reads, (T, D): the mean over 0 … t, or over all L columns."""
        if self.leak:  # all rows are whole
            grid = states.unflatten(0, (-1, rows.longest))
            return grid.mean(1, keepdim=True).expand_as(grid).flatten(0, 1)
        # Attention whose weights are all alike; a running sum would lose digits from row to row.
        one_head = states[:, None]
        return attend(torch.zeros_like(one_head), torch.zeros_like(one_head), one_head, rows)[:, 0]

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        if self.leak:
            columns = padded(items, rows, rows.longest)
            read = padded_places(rows, places, rows.longest)
            rows = whole_rows(columns.shape[0], columns.shape[1], items.device)
            items = columns.flatten()
        else:
            read = places_of(places, items.shape[0])
        states = self.scaled_embedding(items, rows)  # eq. 1
        gate = torch.sigmoid(self.gate(take(self.mean(states, rows), read)))  # eq. 4: (M, 1)
        attended = self.attention(states, rows, read)  # eq. 2: A, (M, D)
        mixed = attended + gate * (self.mamba(states, rows, read) - attended)  # eq. 3, 5
        return self.feed_forward(mixed)  # eq. 6
